"""Tables, sentences and side-by-side answers from measured values."""

import pytest

from whet.report.answers import side_by_side
from whet.report.evaluation import table, trend, verdicts
from whet.runs.reader import SampleRow
from whet.schema.artifacts import Measure


def measure(stage, value, low, high, metric="accuracy", task="exact"):
    return Measure(stage=stage, task=task, metric=metric, value=value, low=low, high=high, num=500)


SFT, DPO = measure("sft", 0.36, 0.33, 0.39), measure("dpo", 0.61, 0.58, 0.64)


def test_models_stand_in_the_order_of_the_pipeline_and_the_best_is_marked():
    shown = table([DPO, SFT, measure("dpo", 0.5, 0.4, 0.6, "accuracy/sort")], ["base", "sft", "dpo"])
    assert shown.models == ("sft", "dpo")
    cells = shown.rows[0].cells
    assert [cell.best for cell in cells] == [False, True]
    assert (cells[1].delta, cells[1].trend, cells[1].interval) == ("+0.250", "better", "[0.580, 0.640]")
    assert (shown.breakdown[0].group, shown.breakdown[0].cells[0]) == ("sort", None)


def test_lower_perplexity_is_better():
    before, after = measure("sft", 9.0, 8.5, 9.5, "perplexity"), measure("dpo", 5.0, 4.8, 5.2, "perplexity")
    assert (trend(before, after), trend(after, before)) == ("better", "worse")
    assert [cell.best for cell in table([before, after], ["sft", "dpo"]).rows[0].cells] == [False, True]


def test_parts_of_a_win_rate_are_detail_and_equals_share_no_crown():
    parts = [measure(stage, 0.5, 0.4, 0.6, metric) for metric in ("win_rate", "tie") for stage in ("sft", "dpo")]
    shown = table(parts, ["sft", "dpo"])
    assert ([row.metric for row in shown.rows], [row.metric for row in shown.breakdown]) == (["win rate"], ["tie"])
    assert not any(cell.best for row in shown.rows for cell in row.cells)


def test_a_preference_for_the_place_is_neither_good_nor_bad():
    before, after = measure("sft", 0.5, 0.45, 0.55, "first"), measure("dpo", 0.7, 0.65, 0.75, "first")
    assert trend(before, after) == "same"
    shown = table([before, after], ["sft", "dpo"])
    assert not shown.rows and not any(cell.best for cell in shown.breakdown[0].cells)


def test_overlapping_intervals_claim_nothing():
    (verdict,) = verdicts([SFT, measure("dpo", 0.4, 0.37, 0.43)], ["sft", "dpo"])
    assert verdict.trend == "same"
    assert "may be chance" in verdict.text


@pytest.mark.parametrize(("low", "high", "expected"), [(0.52, 0.7, "better"), (0.45, 0.6, "same"), (0.3, 0.4, "worse")])
def test_a_win_rate_is_compared_with_an_even_match(low, high, expected):
    measures = [measure("dpo", 0.6, low, high, "win_rate"), measure("dpo", 0.8, 0.7, 0.9, "consistency")]
    (verdict,) = verdicts(measures, ["dpo"])
    assert verdict.trend == expected
    assert "80%" in verdict.text


def sample(model, key, score):
    return SampleRow(model=model, task="exact", key=key, prompt="p", completion=model, reference=None, score=score)


def test_answers_stand_side_by_side_gained_first():
    scores = {"a": (0.0, 0.0), "b": (1.0, 0.0), "c": (0.0, 1.0)}
    rows = [
        sample(model, key, both[place]) for key, both in scores.items() for place, model in ((1, "dpo"), (0, "base"))
    ]
    (task,) = side_by_side(rows, ["base", "dpo"])
    assert [one.change for one in task.comparisons] == ["gained", "lost", "unchanged"]
    assert [answer.model for answer in task.comparisons[0].answers] == ["base", "dpo"]
    assert [answer.mark for answer in task.comparisons[0].answers] == ["wrong", "right"]
    assert "1 got better, 1 got worse, 1 did not change" in task.summary
