"""What stages hand on: models by reference, measured values, and the summary of a finished stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


def is_hub_id(path: str) -> bool:
    """Whether a path that does not exist looks like owner/name."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A model by where it lies: a checkpoint, and an adapter on it (None: the checkpoint as it is)."""

    path: str
    adapter: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number of an evaluation with its 95 % interval over `num` independent items.

    `stage` names the model that was measured: the stage that made it, or `base`.
    """

    stage: str
    task: str
    metric: str
    value: float
    low: float
    high: float
    num: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What a stage leaves: numbers for the summary, the model it made (if any), evaluations (if any)."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    model: ModelRef | None = None
    evaluation: tuple[Measure, ...] = ()
