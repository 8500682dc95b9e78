"""From the trainings of `grpo` to the figures that are shown and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from benchmarks.figures import Spread, spread
from benchmarks.grpo_job import Outcome, Side, Step


@dataclass(frozen=True, kw_only=True)
class SideFigures:
    """One side, over all rounds; medians over the timed steps of all rounds."""

    side: Side
    step_seconds: float
    generate_seconds: float
    score_seconds: float
    train_seconds: float
    tokens_per_second: float
    """Generated ones, over the seconds of whole steps."""
    peak_gb: float
    """Median over rounds, 1e9 bytes."""
    imported_gb: float
    threads: int
    time_ratio: Spread | None
    """This side's seconds over those of the first side, round by round: more than 1 where the first is faster."""
    memory_ratio: Spread | None
    """The first side's peak over this side's, round by round."""
    rewards: list[float]
    """Mean of each step of the last round, warm-up included."""
    kl: list[float]
    seconds: list[list[float]]
    """Every timed step of every round."""


def summarise(rounds: Mapping[Side, Sequence[Outcome]], warmup: int, step_tokens: int) -> list[SideFigures]:
    """One entry a side; the others are compared with the first."""
    first = next(iter(rounds.values()))
    return [_side(side, outcomes, first, warmup, step_tokens) for side, outcomes in rounds.items()]


def _side(
    side: Side, rounds: Sequence[Outcome], first: Sequence[Outcome], warmup: int, step_tokens: int
) -> SideFigures:
    timed = [timed_steps(outcome, warmup) for outcome in rounds]
    steps = [step for of_round in timed for step in of_round]
    pairs = [] if rounds is first else list(zip(rounds, first, strict=True))
    ratios = [_mean_seconds(a, warmup) / _mean_seconds(b, warmup) for a, b in pairs]
    return SideFigures(
        side=side,
        step_seconds=median(step.seconds for step in steps),
        generate_seconds=median(step.generate_seconds for step in steps),
        score_seconds=median(step.score_seconds for step in steps),
        train_seconds=median(step.train_seconds for step in steps),
        tokens_per_second=step_tokens / fmean(step.seconds for step in steps),
        peak_gb=median(outcome.peak_bytes for outcome in rounds) / 1e9,
        imported_gb=median(outcome.imported_bytes for outcome in rounds) / 1e9,
        threads=rounds[0].threads,
        time_ratio=spread(ratios) if pairs else None,
        memory_ratio=spread([b.peak_bytes / a.peak_bytes for a, b in pairs]) if pairs else None,
        rewards=[step.reward for step in rounds[-1].learned.steps],
        kl=[step.kl for step in rounds[-1].learned.steps],
        seconds=[[step.seconds for step in of_round] for of_round in timed],
    )


def timed_steps(outcome: Outcome, warmup: int) -> list[Step]:
    """The steps after the warm-up."""
    return outcome.learned.steps[warmup:]


def _mean_seconds(outcome: Outcome, warmup: int) -> float:
    return fmean(step.seconds for step in timed_steps(outcome, warmup))


def describe(figures: Sequence[SideFigures]) -> str:
    """Aligned text: what the answers were worth, then the figures."""
    worth = [
        f"{side.side}: mean reward by step " + " ".join(f"{reward:.4f}" for reward in side.rewards)
        + "; KL " + " ".join(f"{kl:.1e}" for kl in side.kl)
        for side in figures
    ]  # fmt: skip
    head = f"{'side':14}{'s/step':>8}{'generate':>10}{'score':>8}{'train':>8}{'tokens/s':>10}{'peak GB':>9}"
    lines = [f"{head}{'imports GB':>12}  times as fast   share of memory"]
    for side in figures:
        time, memory = side.time_ratio, side.memory_ratio
        told = f"{time.median:.2f}x ({time.low:.2f}-{time.high:.2f})   {memory.median:.2f}" if time and memory else ""
        lines.append(
            f"{side.side:14}{side.step_seconds:8.3f}{side.generate_seconds:10.3f}{side.score_seconds:8.3f}"
            f"{side.train_seconds:8.3f}{side.tokens_per_second:10.0f}{side.peak_gb:9.2f}"
            f"{side.imported_gb:12.2f}  {told}".rstrip()
        )
    return "\n".join([*worth, "", *lines])
