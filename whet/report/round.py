"""One round of a loop as the page knows it: its stages, what was measured on its model, and what that stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whet.runs.reader import RunView, StageView
from whet.runs.tasks import sections
from whet.schema.artifacts import Measure

Key = tuple[str, str]
"""Task and metric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One model of a loop."""

    number: int
    model: str
    stages: Mapping[str, StageView]
    """Stages of the round by kind, the last of a kind."""
    judged: StageView | None
    """The stage in which this round's model was its own judge: the next round's."""
    mean_length: float | None
    measures: Mapping[Key, Measure]
    """By task and metric."""
    asked: Mapping[Key, str]
    """What each of these measures: rounds whose tasks differ are not compared."""

    def like(self, other: Round, key: Key) -> bool:
        return self.asked[key] == other.asked[key]


def read_round(run: RunView, one: Mapping[str, Any], plan: Mapping[str, Any]) -> Round:
    number, names = one["number"], plan["rounds"]
    found = {stage.name: stage for stage in run.stages}
    own = [found[name] for name in (names[number - 1] if number else ()) if name in found]
    after = [found[name] for name in (names[number] if number < len(names) else ()) if name in found]
    measures, asked = _measured(one["model"], own, run)
    return Round(
        number=number, model=one["model"], stages={stage.kind: stage for stage in own},
        judged=next((stage for stage in after if stage.kind == "prepare" and stage.status == "done"), None),
        mean_length=one["mean_length"], measures=measures, asked=asked,
    )  # fmt: skip


def _measured(model: str, own: Sequence[StageView], run: RunView) -> tuple[dict[Key, Measure], dict[Key, str]]:
    """What was measured on a round's model, and what each value measures. Its own stages come before all others, whose
    tasks may have the same names."""
    names = [stage.name for stage in own]
    measures, asked = dict[Key, Measure](), dict[Key, str]()
    for stage in sorted(run.stages, key=lambda one: one.name not in names):
        known = sections(stage.config)
        for one in stage.evaluation:
            key = one.task, one.metric
            if one.stage == model and "/" not in one.metric and key not in measures:
                measures[key], asked[key] = one, known.get(one.task, "")
    return measures, asked
