"""What a chart says of its numbers, by the kind of the stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from whet.report.charts import training_charts
from whet.report.figures import Chart, Lines, Panel
from whet.runs.layout import StagePaths
from whet.runs.reader import StageView


def panels_of(chart: Chart) -> tuple[Panel, ...]:
    assert isinstance(chart.figure, Lines)
    return chart.figure.panels


@pytest.mark.parametrize(("kind", "unit"), [("dpo", "pairs"), ("kto", "responses")])
def test_accuracy_is_a_share_of_what_the_stage_learns_from(kind: str, unit: str) -> None:
    rows = tuple(
        {"step": step, "loss": 0.5, "learning_rate": 1e-5, "rewards/accuracies": float(step % 2)} for step in range(12)
    )
    stage = StageView(paths=StagePaths(Path(kind)), name=kind, kind=kind, status="done", rows=rows)
    (chart,) = [chart for chart in training_charts(stage) if chart.name == "accuracies"]
    (panel,) = panels_of(chart)
    assert panel.ylabel == f"share of {unit}" and chart.about.startswith(f"Share of {unit} ")
    assert f"too few {unit}" in chart.alarms[0]


def stage(kind: str, *rows: dict) -> StageView:
    return StageView(paths=StagePaths(Path(kind)), name=kind, kind=kind, status="done", rows=rows)


def step(number: int, **more: object) -> dict:
    return {"step": number, "loss": 0.5, "learning_rate": 1e-5, "step_seconds": 1.0, "tokens": 9, **more}


@pytest.mark.parametrize("task", ["maths", "maths/hard", "a/b/c", "perplexity/task"])
@pytest.mark.parametrize("online", [False, True])
def test_a_watched_task_may_have_any_name(task: str, online: bool) -> None:
    """Its breakdowns stay out, whatever the name."""
    more = {"frac_reward_failed": 0.0, "reward": 1.0} if online else {}
    names = f"watch/{task}/accuracy", f"watch/{task}/accuracy/sums"
    watched = [
        {"step": 10 * n, names[0]: value, names[1]: 0.5, "watch/text/perplexity": 2.0}
        for n, value in enumerate((0.901, 0.5, 0.1))
    ]
    steps = [step(number, **more) for number in (1, 2)]
    charts = {chart.name: chart for chart in training_charts(stage("sft", *steps, *watched))}
    assert charts["reward" if online else "watch"].alarms == (
        f"{task}/accuracy fell from 0.901 (step 0) to 0.1 (step 20).",
    )
    panels = [panel for name in ("reward", "watch") if name in charts for panel in panels_of(charts[name])]
    shown = [series.label for panel in panels for series in panel.series if series.label.startswith("watch/")]
    assert shown == [names[0], "watch/text/perplexity"]


@pytest.mark.parametrize("lost", ["seconds/score", "seconds/generate", "step_seconds", "tokens"])
@pytest.mark.parametrize("missing", [False, True])
def test_times_that_were_not_measured_leave_the_others(lost: str, missing: bool) -> None:
    online = {"frac_reward_failed": 0.0, "seconds/generate": 0.5, "seconds/score": 0.25}
    rows = [step(number, **online) | {lost: None} for number in (1, 2)]
    if missing:
        rows = [{name: value for name, value in row.items() if name != lost} for row in rows]
    charts = {chart.name: chart for chart in training_charts(stage("grpo", *rows))}
    assert ("seconds" in charts) == (lost != "seconds/generate")
    if lost == "seconds/score":
        (panel,) = panels_of(charts["seconds"])
        assert [list(series.y) for series in panel.series] == [[0.5, 0.5], [0.0, 0.0], [0.5, 0.5]]
