"""Weights in parts: what a stage cannot do then, said before anything is loaded, and how they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import psutil
import torch

from whet.config.stage import PpoStage, RewardStage, SftStage, TrainStage
from whet.errors import RunError
from whet.models.shape import shape_of
from whet.stages.context import Context
from whet.train.parallel import Parallel

T = TypeVar("T")
S = TypeVar("S", bound=torch.nn.Module)
ROOM = 0.7
"""Part of a machine's free memory that its ranks may fill with whole models while they load."""


def check_parts(stage: TrainStage, parallel: Parallel, *, adapter: bool) -> None:
    """Raises RunError for a stage that does not go with `launch.sharding`; `adapter` says that one trains."""
    if parallel.holding is None:
        return
    if isinstance(stage, PpoStage):
        raise RunError(
            "PPO's value function is not trained with launch.sharding", field=f"stages.{stage.name}.kind", found="ppo",
            fix="leave launch.sharding out, or use grpo",
        )  # fmt: skip
    if adapter and not parallel.holding.switches and not isinstance(stage, SftStage | RewardStage):
        raise RunError(
            "ZeRO-3 cannot switch an adapter off for the reference", field=f"stages.{stage.name}.kind",
            found=f"{stage.kind} with an adapter", fix="use launch.sharding=fsdp, ZeRO-2, or model.lora=null",
        )  # fmt: skip
    if not isinstance(stage, RewardStage) and stage.watch and parallel.holding.looks:
        raise RunError(
            "tasks cannot be watched while every rank holds a part of each weight", field=f"stages.{stage.name}.watch",
            fix="put an evaluate stage behind it, or use ZeRO-2",
        )  # fmt: skip


def loaded_in_parts(load: Callable[[], tuple[T, S]], context: Context, parallel: Parallel) -> tuple[T, S]:
    """What `load` gives, a model and its scorer, on every rank.

    Ranks that train all weights of a model which their machine cannot hold once for each of them load one after the
    other, and each gives up what is not its own before the next begins.
    """
    holding = parallel.holding
    adapter = context.model.lora is not None or context.start.adapter is not None
    if holding is None or adapter or not holding.divides_alone:
        return load()

    def is_short() -> bool:
        whole = 4 * shape_of(context.start.path, context.model).parameters
        return bool(context.ranks.local_world * whole > ROOM * psutil.virtual_memory().available)

    if not context.ranks.on_main(is_short, "the room for the model"):
        return load()

    def load_own() -> tuple[T, S]:
        loaded = load()
        holding.divide(loaded[1])
        return loaded

    return context.ranks.in_turn(load_own, "its turn to load the model")
