"""From the outcomes of all rounds to the figures that are shown and kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.flops import row_tokens, step_flops
from benchmarks.job import Outcome, Side, Training
from benchmarks.shapes import Shape


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every step after the warm-up holds, the same for all sides; one entry a step."""

    warmup: int
    tokens: list[int]
    flops: list[float]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over the rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class SideFigures:
    """One side, over all rounds."""

    side: Side
    step_seconds: float
    """Median over the timed steps of all rounds."""
    tokens_per_second: float
    """Tokens of the timed steps over their seconds, all rounds."""
    peak_gb: float
    """Median over rounds, 1e9 bytes."""
    imported_gb: float
    outside_seconds: float
    """What a training takes besides its steps: loading, tokenising, saving. Median over rounds."""
    threads: int
    time_ratio: Spread | None = None
    """This side's seconds over those of the first side, round by round: more than 1 where the first is faster."""
    memory_ratio: Spread | None = None
    """The first side's peak over this side's, round by round: less than 1 where the first needs less."""
    utilisation: float | None = None
    """Model FLOPs a second over the device's peak."""
    settings: dict[str, str] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    """Of the last round, warm-up included."""
    seconds: list[list[float]] = field(default_factory=list)
    """Every timed step of every round."""


def shown(spread: Spread | None, digits: int) -> str:
    """Median, lowest and highest; nothing for the side that others are compared with."""
    return "" if spread is None else f"{spread.median:.{digits}f} ({spread.low:.{digits}f} to {spread.high:.{digits}f})"


def work_of(training: Training, warmup: int, shape: Shape) -> Work:
    """Tokens and FLOPs of the timed steps."""
    rows = json.loads(Path(training.rows).read_text(encoding="utf-8"))
    size = training.batch_size
    steps = [rows[i * size : (i + 1) * size] for i in range(warmup, training.steps)]
    return Work(
        warmup=warmup,
        tokens=[sum(row_tokens(training.task, row) for row in step) for step in steps],
        flops=[step_flops(training.task, step, shape, training.rank) for step in steps],
    )


def summarise(outcomes: Mapping[Side, Sequence[Outcome]], work: Work, peak: float | None) -> list[SideFigures]:
    """One entry a side; the others are compared with the first. `peak` is the device's FLOP/s, if it is known."""
    first = next(iter(outcomes.values()))
    return [_side(side, rounds, first, work, peak) for side, rounds in outcomes.items()]


def _side(
    side: Side, rounds: Sequence[Outcome], first: Sequence[Outcome], work: Work, peak: float | None
) -> SideFigures:
    seconds = [timed(outcome, work) for outcome in rounds]
    total = sum(map(sum, seconds))
    same = rounds is first
    return SideFigures(
        side=side,
        step_seconds=median(second for steps in seconds for second in steps),
        tokens_per_second=len(rounds) * sum(work.tokens) / total,
        peak_gb=median(outcome.peak_bytes for outcome in rounds) / 1e9,
        imported_gb=median(outcome.imported_bytes for outcome in rounds) / 1e9,
        outside_seconds=median(o.trained.total_seconds - sum(o.trained.step_seconds) for o in rounds),
        threads=rounds[0].threads,
        time_ratio=None
        if same
        else spread([sum(timed(a, work)) / sum(timed(b, work)) for a, b in zip(rounds, first, strict=True)]),
        memory_ratio=None
        if same
        else spread([b.peak_bytes / a.peak_bytes for a, b in zip(rounds, first, strict=True)]),
        utilisation=len(rounds) * sum(work.flops) / total / peak if peak else None,
        settings=rounds[0].trained.settings,
        losses=rounds[-1].trained.losses,
        seconds=seconds,
    )


def timed(outcome: Outcome, work: Work) -> list[float]:
    """Seconds of the steps after the warm-up."""
    return outcome.trained.step_seconds[work.warmup :]


def spread(values: Sequence[float]) -> Spread:
    return Spread(median=median(values), low=min(values), high=max(values))


def to_json(figures: Sequence[SideFigures]) -> list[dict[str, Any]]:
    return [asdict(side) for side in figures]
