"""The benchmark of ranks: the plans it writes are whet's, and its ratios are those of the same round."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import ranks
from benchmarks.ranks import WAYS, compare, describe, entry, parser, write_plan
from benchmarks.table import render_results, save
from whet.config.load import load_plan


def test_both_plans_have_the_same_rows_and_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = parser().parse_args(["--model", "3m", "--batch-size", "2", "--steps", "3"])
    adapter, full = (load_plan(write_plan(options, trains, tmp_path)) for trains in ("adapter", "all"))
    assert adapter.model.lora is not None and full.model.lora is None
    assert adapter.stages == full.stages and adapter.stages[0].train.max_steps == 5
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2 * 5


def test_two_ranks_are_compared_with_the_one_of_their_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([4.0, 2.0, 3.0, 6.0, 4.0, 6.0])
    monkeypatch.setattr(ranks, "train", lambda plan, run, processes, told: [next(times)] * 2)
    monkeypatch.setattr(ranks, "write_plan", lambda options, trains, work: work / "plan.yaml")
    options = parser().parse_args(["--rounds", "2"])
    one, two, parts = compare(options, "all", tmp_path)
    assert [way.ranks for way in (one, two, parts)] == list(WAYS) and one.speedup is None
    assert two.speedup is not None and (two.speedup.low, two.speedup.high) == (1.5, 2.0)
    assert "1.75 (1.50 to 2.00)" in describe([one, two])
    save("one", entry(options, [one, two]), tmp_path)
    (line,) = [line for line in render_results(tmp_path).splitlines() if line.startswith("| ranks") and "| 2 |" in line]
    assert "| ranks | 103m | 8 | fp32 | all | 2 | 3 | 1.75 (1.50 to 2.00) |" in line
