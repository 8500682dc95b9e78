"""What a stage cannot do while its weights are in parts, said before anything is loaded."""

from __future__ import annotations

from whet.config.stage import PpoStage, RewardStage, SftStage, TrainStage
from whet.errors import RunError
from whet.train.parallel import Parallel


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
