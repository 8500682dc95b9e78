"""A device's memory that runs out while a stage trains, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from whet.config.stage import RewardStage, SftStage, TrainStage
from whet.errors import RunError, first_line


@contextmanager
def memory_told(stage: TrainStage) -> Iterator[None]:
    """Running out of a device's memory is the plan's doing, and one line that says what to lower. Raises RunError.

    Only the reference's own work is done again on the CPU (`whet.models.placed`); what comes here is anybody else's.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        asked = stage.train.micro_batch_tokens
        beside = not isinstance(stage, SftStage | RewardStage) and stage.reference.device != "cpu"
        raise RunError(
            f"memory ran out: {'. '.join(first_line(error).split('. ')[:2])}",
            field="train.micro_batch_tokens", found="null: fitted to the device" if asked is None else str(asked),
            fix="set a lower one, or train.gradient_checkpointing=true"
            f"{', or reference.device=cpu where there is a second model' if beside else ''}; "
            "the last checkpoint is intact",
        ) from error  # fmt: skip
