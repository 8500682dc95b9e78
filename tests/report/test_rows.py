"""The data ledger as rows of a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.playground import ledger
from whet.report.rows import ledger_rows
from whet.runs.layout import StagePaths
from whet.runs.reader import StageView


@pytest.mark.parametrize(
    ("data", "splits"), [(ledger(5, {}), [""]), ({"read": ledger(5, {}), "kept": ledger(2, {})}, ["read", "kept"])]
)
def test_a_task_may_be_called_what_a_ledger_calls_its_numbers(data: dict, splits: list[str]) -> None:
    stage = StageView(paths=StagePaths(Path("e")), name="e", kind="evaluate", status="done", data=data)
    assert [(row.split, row.read) for row in ledger_rows(stage)] == list(zip(splits, (5, 2), strict=False))
