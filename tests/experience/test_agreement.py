"""Judge against checker, and what a stage says about its groups, on numbers worked by hand."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest

from tests.experience.groups import group
from whet.config.rollout import Pairs
from whet.experience.agreement import agreement_metrics, auc, check_groups
from whet.experience.pairs import select_pairs
from whet.experience.summary import chosen_length_ratio, group_metrics, histograms, reservoir
from whet.rewards.check import CheckError
from whet.schema.records import Prompt


def test_auc_by_hand() -> None:
    assert auc([3.0, 4.0], [1.0, 2.0]) == 1.0
    assert auc([1.0], [2.0]) == 0.0
    assert auc([2.0], [2.0]) == 0.5
    assert auc([3.0, 1.0], [2.0, 1.0]) == (1 + 1 + 0 + 0.5) / 4
    assert math.isnan(auc([], [1.0]))


def check(prompt: Prompt, completion: str) -> float:
    if completion == "?":
        raise CheckError("cannot say", file="a.jsonl:3")
    return {"r": 1.0, "h": 0.5}.get(completion[0], 0.0)


def test_agreement_metrics_by_hand() -> None:
    groups = [
        group(("r1", 4.0), ("w1", 2.0), ("h1", 3.0)),  # half marks are wrong; pair r1 > w1
        group(("r2", 1.0), ("w2", 3.0), ("?", 5.0)),  # pair ? > r2: the checker has no word on it
        group(("w3", 4.0), ("r3", 0.0)),  # pair w3 > r3
        group(("r4", 5.0), ("r5", 1.0)),  # both right: no difference to find
        group(("r6", None), ("w6", None)),
    ]
    outcomes, _ = select_pairs(groups, Pairs())
    checked = check_groups(groups, check)
    assert checked.failures == 1 and checked.first_failure == "a.jsonl:3: cannot say"
    metrics = agreement_metrics(groups, outcomes, checked)
    # right 4 1 0 5 1 against wrong 2 3 3 4: 3.5 + 0 + 0 + 4 + 0 wins of 20
    assert metrics["agreement"] == pytest.approx(7.5 / 20)
    assert metrics["agreement_num"] == 9
    # same prompt: r1 beats w1 and h1; r2 loses; r3 loses
    assert metrics["agreement_same_prompt"] == pytest.approx(2 / 4)
    assert metrics["accuracy"] == pytest.approx(6 / 11)
    assert (metrics["pair_accuracy"], metrics["pair_accuracy_num"]) == (0.5, 2)
    assert metrics["checker_failures"] == 1


def test_an_answer_that_never_came_is_neither_right_nor_wrong() -> None:
    asked = group(("r1", 4.0), ("", None))
    lost = replace(asked.completions[1], finish_reason="error", error="status 503")
    checked = check_groups([replace(asked, completions=(asked.completions[0], lost))], check)
    assert checked.right == [[True, None]] and checked.failures == 0


def test_nothing_to_measure_leaves_the_number_out() -> None:
    groups = [group(("r1", 4.0), ("r2", 2.0))]
    outcomes, _ = select_pairs(groups, Pairs())
    metrics = agreement_metrics(groups, outcomes, check_groups(groups, check))
    assert "agreement" not in metrics and "pair_accuracy" not in metrics and metrics["accuracy"] == 1.0


def test_group_metrics_by_hand() -> None:
    groups = [group(("abc", 4.0), ("d", 2.0)), group(("ef", 3.0), ("gh", 3.0)), group(("ij", None), ("", 0.0))]
    outcomes, counts = select_pairs(groups, Pairs())
    metrics = group_metrics(groups, counts)
    assert (metrics["num_prompts"], metrics["num_candidates"], metrics["num_pairs"]) == (3, 6, 1)
    assert metrics["tie_rate"] == pytest.approx(1 / 3)
    assert metrics["mean_score"] == pytest.approx(12 / 5)
    assert metrics["mean_length"] == pytest.approx(10 / 6)
    assert chosen_length_ratio(groups, outcomes) == 3.0
    assert chosen_length_ratio(groups, ["ties"] * 3) is None


def test_histograms_by_hand() -> None:
    groups = [group(("a", 5.0), ("b", 0.0)), group(("c", 4.75), ("d", None)), group(("e", None), ("f", None))]
    drawn = histograms(groups, (0.0, 5.0), 2)
    assert drawn["score"]["edges"] == [i / 2 for i in range(11)]
    assert drawn["score"]["counts"] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert drawn["candidates"] == {"edges": [0, 1, 2, 3], "counts": [1, 1, 1]}
    wide = histograms(groups[:0], (1.0, 100.0), 2)["score"]
    assert len(wide["counts"]) == 40 and wide["edges"][0] == 1 and wide["edges"][-1] == pytest.approx(100)


def test_the_reservoir_is_fair_and_a_function_of_the_seed() -> None:
    items = list(range(30))
    assert reservoir(items, 5, 1) == reservoir(items, 5, 1) != reservoir(items, 5, 2)
    assert reservoir(items, 40, 1) == items and reservoir(items, 0, 1) == []
    seen = Counter(item for seed in range(3000) for item in reservoir(items, 5, seed))
    # each item in 5/30 of the draws: 500 +- 4 standard deviations of 20.4
    assert all(418 < seen[item] < 582 for item in items)
