"""Rounds of a plan between one and the next: how they compare, whether they go on, whose model they leave.

A round is compared by the value that its evaluate stage measured on its model (`metric`), and by the mean number of
tokens of the answers it measured. Both are read from the stages' folders, so that a loop that was killed, or done long
ago, says the same again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whet.config.plan import Plan
from whet.config.repeat import Rounds
from whet.runs.files import read_jsonl
from whet.runs.layout import RunPaths
from whet.runs.ledger import Status, record_event
from whet.runs.tasks import sections
from whet.schema.artifacts import Measure

LOWER_IS_BETTER = ("perplexity", "loss")
"""Metrics of which less is better, by the beginning of their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One model of a loop as it was measured: round 0 is the one the first round started from."""

    number: int
    model: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    mean_length: float | None = None
    """Tokens of an answer to the task of the metric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a loop stands."""

    rounds: tuple[Round, ...]
    """Those that are done; round 0 in front where it was measured."""
    stopped: str | None
    """Why no further round is made; None where all were, or the next one is due."""
    kept: str
    """The model that later stages go on from."""

    def to_json(self, loop: Rounds) -> dict[str, Any]:
        done = sum(one.number > 0 for one in self.rounds)
        return {
            "name": loop.name, "rounds": [asdict(one) for one in self.rounds], "done": done, "of": loop.repeat,
            "stopped": self.stopped, "kept": self.kept, "metric": loop.metric,
        }  # fmt: skip


def ended_round(plan: Plan, stage: str) -> tuple[Rounds, int] | None:
    """The loop and the number of its round that this stage is the last of."""
    for loop in plan.loops:
        for number, names in enumerate(loop.rounds, start=1):
            if names[-1] == stage:
                return loop, number
    return None


def stopped_before(plan: Plan, stage: str, loops: Mapping[str, Outcome]) -> str | None:
    """Why this stage is not done: its loop has stopped before its round. None where it is due."""
    for loop in plan.loops:
        if stage in loop.stages and loop.name in loops and loops[loop.name].stopped:
            return f"{loop.name} has stopped: {loops[loop.name].stopped}"
    return None


def tell_stopped(paths: RunPaths, loop: Rounds, number: int, why: str) -> None:
    """Say it, and write it to the ledger where it was not written for this round before."""
    print(f"{loop.name}: stopped after round {number} of {loop.repeat}, {why}")
    known = [row for row in read_jsonl(paths.ledger) if (row["event"], row.get("loop")) == ("stopped", loop.name)]
    if not known or (known[-1]["round"], known[-1]["why"]) != (number, why):
        record_event(paths, "stopped", loop=loop.name, round=number, why=why)


def judge_rounds(loop: Rounds, done: int, stages: Sequence[Status], folders: Mapping[str, Path]) -> Outcome:
    """What there is to say after `done` rounds; `stages` and `folders` are those of everything done so far."""
    measured = [_round(loop, number, stages, folders) for number in range(done + 1)]
    rounds = tuple(one for one in measured if one.number > 0 or one.value is not None)
    return Outcome(rounds=rounds, stopped=_why_stop(loop, rounds, done), kept=_kept(loop, rounds))


def _round(loop: Rounds, number: int, stages: Sequence[Status], folders: Mapping[str, Path]) -> Round:
    model = loop.start if number == 0 else loop.models[number - 1]
    if loop.metric is None:
        return Round(number=number, model=model)
    task, _, metric = loop.metric.partition("/")
    for status in _measuring(loop, number, task, stages):
        for one in status.result.evaluation:
            if (one.stage, one.task, one.metric) == (model, task, metric):
                return _measured(number, one, folders.get(status.name))
    return Round(number=number, model=model)


def _measuring(loop: Rounds, number: int, task: str, stages: Sequence[Status]) -> Sequence[Status]:
    """The stages that say what a round's model is worth: its own, and any other whose task is the same in everything:
    before the rounds, or at the head of the next one."""
    own = [status for status in stages if status.name in loop.rounds[max(0, number - 1)]]
    asked = {sections(status.config["stage"]).get(task) for status in own} - {None}
    others = [status for status in stages if status not in own]
    return [*own, *(status for status in others if sections(status.config["stage"]).get(task) in asked)]


def _measured(number: int, one: Measure, folder: Path | None) -> Round:
    rows = read_jsonl(folder / "replies.jsonl") if folder is not None else []
    lengths = [row["num_tokens"] for row in rows if (row["owner"], row["task"]) == (one.stage, one.task)]
    return Round(
        number=number, model=one.stage, value=one.value, low=one.low, high=one.high,
        mean_length=sum(lengths) / len(lengths) if lengths else None,
    )  # fmt: skip


def _why_stop(loop: Rounds, rounds: Sequence[Round], done: int) -> str | None:
    if done >= loop.repeat:
        return None
    last = rounds[-1]
    grown, limit = _growth(last, rounds), loop.stop.max_length_growth
    if grown is not None and limit is not None and grown > limit:
        return f"answers of {last.model} are {grown:.2f} times as long as at first, more than {limit:g} times"
    without = _rounds_without_gain(loop, rounds)
    if loop.stop.no_gain is not None and without >= loop.stop.no_gain:
        measured = [one for one in rounds if one.value is not None]
        last, best = measured[-1], _best(loop, measured[: len(measured) - without])
        return (
            f"{loop.metric} of {last.model} is {last.value:.3f}, and {best.model} had {best.value:.3f} "
            f"[{best.low:.3f}, {best.high:.3f}]: no gain beyond the interval"
            f"{f' for {without} rounds' if without > 1 else ''}"
        )
    return None


def _rounds_without_gain(loop: Rounds, rounds: Sequence[Round]) -> int:
    """Rounds at the end of which none was better than the best before it by more than that one's interval."""
    measured = [one for one in rounds if one.value is not None]
    without = 0
    for index in range(len(measured) - 1, 0, -1):
        if _gained(loop, _best(loop, measured[:index]), measured[index]):
            break
        without += 1
    return without


def _gained(loop: Rounds, best: Round, later: Round) -> bool:
    assert later.value is not None and best.low is not None and best.high is not None, "only measured rounds compare"
    return later.value < best.low if _lower_is_better(loop) else later.value > best.high


def _best(loop: Rounds, rounds: Sequence[Round]) -> Round:
    """The measured round with the best value, the earlier one where two have it."""
    sign = -1.0 if _lower_is_better(loop) else 1.0
    return max((one for one in rounds if one.value is not None), key=lambda one: sign * (one.value or 0.0))


def _kept(loop: Rounds, rounds: Sequence[Round]) -> str:
    if loop.keep == "last":
        return rounds[-1].model
    limit = loop.stop.max_length_growth
    fitting = [
        one for one in rounds
        if one.number > 0 and one.value is not None and (limit is None or (_growth(one, rounds) or 0.0) <= limit)
    ]  # fmt: skip
    return _best(loop, fitting).model if fitting else loop.start


def _growth(one: Round, rounds: Sequence[Round]) -> float | None:
    """How many times as long its answers are as those of the first model that was measured."""
    first = next((other.mean_length for other in rounds if other.mean_length), None)
    return one.mean_length / first if first and one.mean_length is not None else None


def _lower_is_better(loop: Rounds) -> bool:
    metric = (loop.metric or "").partition("/")[2]
    return metric.startswith(LOWER_IS_BETTER)
