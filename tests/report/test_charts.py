"""What a chart says of its numbers, by the kind of the stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from whet.report.charts import training_charts
from whet.runs.layout import StagePaths
from whet.runs.reader import StageView


@pytest.mark.parametrize(("kind", "unit"), [("dpo", "pairs"), ("kto", "responses")])
def test_accuracy_is_a_share_of_what_the_stage_learns_from(kind: str, unit: str) -> None:
    rows = tuple(
        {"step": step, "loss": 0.5, "learning_rate": 1e-5, "rewards/accuracies": float(step % 2)} for step in range(12)
    )
    stage = StageView(paths=StagePaths(Path(kind)), name=kind, kind=kind, status="done", rows=rows)
    (chart,) = [chart for chart in training_charts(stage) if chart.name == "accuracies"]
    (panel,) = chart.figure.panels  # type: ignore[union-attr]
    assert panel.ylabel == f"share of {unit}" and chart.about.startswith(f"Share of {unit} ")
    assert f"too few {unit}" in chart.alarms[0]
