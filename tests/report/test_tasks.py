"""Tasks of several stages under one name: what differs stands apart and is compared nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from whet.report.answers import side_by_side
from whet.report.evaluation import intervals_chart, table, verdicts
from whet.report.tasks import told_apart
from whet.runs.layout import RunPaths, StagePaths
from whet.runs.reader import RunView, SampleRow, StageView
from whet.schema.artifacts import Measure

ORDER = ["base", "sft"]
X = {"type": "exact", "name": None, "data": {"files": ["x.jsonl"]}}
Y = {"type": "exact", "name": None, "data": {"files": ["y.jsonl"]}}


def stage(name: str, tasks: list[dict[str, Any]], *values: tuple[str, str, float]) -> StageView:
    """An evaluate stage that measured these (model, task, accuracy)."""
    measures = [
        Measure(stage=model, task=task, metric="accuracy", value=value, low=value - 0.05, high=value + 0.05, num=600)
        for model, task, value in values
    ]
    samples = [
        SampleRow(model=model, task=task, key="x.jsonl:1", prompt="?", completion=name, reference=None, score=value)
        for model, task, value in values
    ]
    return StageView(
        paths=StagePaths(Path(name)), name=name, kind="evaluate", status="done", config={"tasks": tasks},
        evaluation=tuple(measures), samples=tuple(samples),
    )  # fmt: skip


def run(*stages: StageView) -> RunView:
    return told_apart(
        RunView(paths=RunPaths(Path("run")), plan={}, plan_text="", environment={}, summary=None, stages=stages)
    )


def test_values_on_different_files_are_not_compared() -> None:
    found = run(stage("e1", [X], ("base", "exact", 0.2)), stage("e2", [Y], ("sft", "exact", 0.8)))
    assert verdicts(found.evaluation, ORDER) == []
    rows = table(found.evaluation, ORDER).rows
    assert [row.task for row in rows] == ["exact (e1)", "exact (e2)"]
    assert [[cell and cell.value for cell in row.cells] for row in rows] == [["0.200", None], [None, "0.800"]]
    assert not any(cell.best or cell.delta or cell.trend for row in rows for cell in row.cells if cell)
    chart = intervals_chart(found.evaluation, ORDER)
    assert chart is not None and [title for title, _ in chart.figure.groups] == [  # type: ignore[union-attr]
        "exact (e1) · accuracy", "exact (e2) · accuracy",
    ]  # fmt: skip
    answers = side_by_side([row for one in found.stages for row in one.samples], ORDER)
    assert [(one.task, len(one.comparisons[0].answers)) for one in answers] == [("exact (e1)", 1), ("exact (e2)", 1)]


def test_a_model_that_both_stages_measure_keeps_both_values() -> None:
    found = run(stage("e1", [X], ("sft", "exact", 0.2)), stage("e2", [Y], ("sft", "exact", 0.8)))
    values = [cell.value for row in table(found.evaluation, ORDER).rows for cell in row.cells if cell]
    assert values == ["0.200", "0.800"]


@pytest.mark.parametrize("name", [None, "exact"])
def test_the_same_task_is_one_whatever_it_was_called_by(name: str | None) -> None:
    found = run(stage("e1", [X], ("base", "exact", 0.2)), stage("e2", [X | {"name": name}], ("sft", "exact", 0.8)))
    (verdict,) = verdicts(found.evaluation, ORDER)
    assert verdict.text.startswith("exact accuracy rose from 0.200")


def test_a_number_belongs_to_one_stage() -> None:
    """`exact` of the second stage is what the first calls `exact-2`; a third stage measures what the first does."""
    found = run(
        stage("e1", [X, Y], ("base", "exact", 0.2), ("base", "exact-2", 0.3)),
        stage("e2", [Y], ("sft", "exact", 0.8)),
        stage("e3", [X], ("sft", "exact", 0.9)),
    )
    assert [(one.stage, one.task) for one in found.evaluation] == [
        ("base", "exact (e1, e3)"), ("base", "exact-2"), ("sft", "exact (e2)"), ("sft", "exact (e1, e3)"),
    ]  # fmt: skip
    (verdict,) = verdicts(found.evaluation, ORDER)
    assert "from 0.200" in verdict.text and "to 0.900" in verdict.text


def test_matches_against_different_models_stand_apart() -> None:
    match = {"type": "win_rate", "name": "match", "data": {"files": ["x.jsonl"]}}
    found = run(
        stage("e1", [match | {"against": "base"}], ("one", "match", 0.7)),
        stage("e2", [match | {"against": "one"}], ("two", "match", 0.5)),
    )
    assert [one.task for one in found.evaluation] == ["match (e1)", "match (e2)"]
