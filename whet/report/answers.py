"""Answers of several models to the same prompts, side by side, and the groups a judge scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from whet.report.pictures import thumbnails
from whet.report.words import cut
from whet.runs.reader import SampleRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One model's answer, with the checker's score where there is one."""

    model: str
    text: str
    score: float | None

    @property
    def mark(self) -> str:
        """`right`, `half` (a tie, half the points), `wrong`, or empty where nothing scored it."""
        if self.score is None:
            return ""
        return "right" if self.score > 0.5 else "half" if self.score == 0.5 else "wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A prompt with each model's answer; `change` is `gained`, `lost` or `unchanged`, first model against last."""

    prompt: str
    reference: str | None
    answers: tuple[Answer, ...]
    change: str
    pictures: tuple[str, ...] = ()
    """Thumbnails of the prompt's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskAnswers:
    """The kept answers of a task, gained first, then lost, then unchanged."""

    task: str
    comparisons: tuple[Comparison, ...]
    summary: str


def side_by_side(samples: Sequence[SampleRow], order: Sequence[str]) -> list[TaskAnswers]:
    """Samples grouped by task and prompt; models in the order of the pipeline."""
    found = []
    for task in dict.fromkeys(row.task for row in samples):
        rows = [row for row in samples if row.task == task]
        comparisons = [
            _compare([row for row in rows if row.key == key], order) for key in dict.fromkeys(r.key for r in rows)
        ]
        comparisons.sort(key=lambda one: ("gained", "lost", "unchanged").index(one.change))
        found.append(TaskAnswers(task=task, comparisons=tuple(comparisons), summary=_summary(comparisons)))
    return found


def _compare(rows: Sequence[SampleRow], order: Sequence[str]) -> Comparison:
    latest = {row.model: row for row in rows}
    places = {name: place for place, name in enumerate(order)}
    models = sorted(latest, key=lambda name: places.get(name, len(places)))
    answers = tuple(Answer(model=m, text=cut(latest[m].completion), score=latest[m].score) for m in models)
    first, last = answers[0].score or 0.0, answers[-1].score or 0.0
    change = "unchanged" if first == last else "gained" if last > first else "lost"
    prompt, reference = rows[0].prompt, rows[0].reference
    return Comparison(
        prompt=cut(prompt), reference=None if reference is None else cut(reference), answers=answers, change=change,
        pictures=thumbnails(rows[0].images),
    )  # fmt: skip


def _summary(comparisons: Sequence[Comparison]) -> str:
    if len(comparisons[0].answers) < 2:
        return f"{len(comparisons)} prompts, drawn at random before any answer was seen."
    counts = Counter(one.change for one in comparisons)
    first, last = comparisons[0].answers[0].model, comparisons[0].answers[-1].model
    text = f"{len(comparisons)} prompts, drawn at random before any answer was seen"
    if any(answer.mark for answer in comparisons[0].answers):
        text += (
            f". From {first} to {last}: {counts['gained']} got better, {counts['lost']} got worse, "
            f"{counts['unchanged']} did not change; shown in this order"
        )
    return text + "."
