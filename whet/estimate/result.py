"""An estimate, ready to be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whet.estimate.memory import Memory
from whet.estimate.setting import Setting
from whet.estimate.time import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing to change, with those before it, and what the peak then is."""

    keys: str
    """As they are written on the command line."""
    cost: str
    """What it changes beside memory."""
    peak: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What a few real steps took."""

    steps: int
    tokens_per_second: float
    """Of all steps but the first, generation included where the stage generates."""
    peak: int
    """Bytes, as the stage's own log says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEstimate:
    """One stage that trains."""

    name: str
    kind: str
    setting: Setting
    memory: Memory
    room: float
    """Bytes a rank has."""
    longest: int
    """Tokens of the longest row or prompt."""
    work: Work | None
    flops: float | None
    """Of an epoch, over all ranks."""
    notes: tuple[str, ...]
    """What is assumed, and what is left out."""
    changes: tuple[Change, ...] = ()
    """What to change where it does not fit, each on top of those before it."""
    rate: float | None = None
    """Stated FLOP/s of a rank."""
    probed: Probed | None = None

    @property
    def peak(self) -> float:
        return self.memory.peak.bytes

    @property
    def fits(self) -> bool:
        return self.peak <= self.room

    @property
    def epoch_seconds(self) -> float | None:
        """From the probe, else from the stated FLOP/s; None without either, or where the number of rows is unknown."""
        if self.work is None:
            return None
        if self.probed is not None:
            return self.work.tokens / self.probed.tokens_per_second
        if self.rate is not None and self.flops is not None:
            return self.flops / (self.rate * self.setting.ranks)
        return None


def to_json(estimates: Sequence[StageEstimate]) -> list[dict[str, Any]]:
    """Everything that the table says, in bytes, tokens and seconds."""
    return [_stage(estimate) for estimate in estimates]


def _stage(estimate: StageEstimate) -> dict[str, Any]:
    setting, work, probed = estimate.setting, estimate.work, estimate.probed
    batch = setting.micro_batch
    return {
        "stage": estimate.name,
        "kind": estimate.kind,
        "model": setting.shape.name,
        "parameters": setting.shape.parameters,
        "trainable": setting.trainable,
        "device": "cpu" if setting.on_cpu else "cuda",
        "arithmetic": setting.arithmetic,
        "ranks": setting.ranks,
        "sharding": setting.sharding,
        "longest": estimate.longest,
        "micro_batch": {"tokens": batch.tokens, "targets": batch.targets, "recompute": batch.recompute},
        "room": round(estimate.room),
        "peak": round(estimate.peak),
        "fits": estimate.fits,
        "moments": {
            moment.name: {part.name: round(part.bytes) for part in moment.parts} for moment in estimate.memory.moments
        },
        "peak_moment": estimate.memory.peak.name,
        "changes": [{"keys": c.keys, "cost": c.cost, "peak": round(c.peak)} for c in estimate.changes],
        "epoch": None if work is None else {
            "records": work.records, "steps": work.steps, "tokens": work.tokens, "generated": work.generated,
            "flops": estimate.flops, "seconds": estimate.epoch_seconds,
        },
        "probe": None if probed is None else {
            "steps": probed.steps, "tokens_per_second": probed.tokens_per_second, "peak": probed.peak,
        },
        "notes": list(estimate.notes),
    }  # fmt: skip
