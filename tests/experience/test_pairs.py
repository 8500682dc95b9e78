"""Pair rules by hand, one row a rule."""

from __future__ import annotations

import math

import pytest

from tests.experience.groups import group, question
from whet.config.rollout import Pairs
from whet.experience.pairs import Pair, select_pair, select_pairs
from whet.experience.rows import dpo_row, grpo_rows, gspo_row, raw_row, softmax
from whet.schema.records import Message, Prompt
from whet.schema.rollouts import Group

MIXED = group(("a", 4.0), ("b", 2.0), ("c", 5.0), ("d", 2.0))


def test_best_against_worst_the_first_of_equals() -> None:
    pair = select_pair(MIXED, Pairs())
    assert isinstance(pair, Pair)
    assert (pair.chosen.text, pair.chosen.index, pair.rejected.text, pair.rejected.index) == ("c", 2, "b", 1)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([("", None), (" \n", 3.0)], "empty"),
        ([("a", None), ("b", None)], "no_score"),
        ([("a", 3.0), ("b", None)], "one_candidate"),
        ([("a", 3.0), ("", 0.0)], "one_candidate"),
        ([("a", 3.0)], "one_candidate"),
        ([("a", 3.0), ("a", 1.0)], "identical"),
        ([("a", 3.0), ("a", 3.0)], "identical"),
        ([("a", 4.0), ("b", 3.0), ("a", 1.0)], "identical"),
        ([("a", 3.0), ("b", 3.0)], "ties"),
    ],
)
def test_no_pair_has_its_reason(answers: list[tuple[str, float | None]], reason: str) -> None:
    assert select_pair(group(*answers), Pairs()) == reason


def test_ties_are_kept_when_asked_for_with_different_texts() -> None:
    pair = select_pair(group(("a", 3.0), ("a", 3.0), ("b", 3.0)), Pairs(keep_ties=True))
    assert isinstance(pair, Pair) and (pair.chosen.text, pair.rejected.text) == ("a", "b")
    assert select_pair(group(("a", 3.0), ("a", 3.0)), Pairs(keep_ties=True)) == "identical"


def test_the_margin_must_be_exceeded() -> None:
    assert select_pair(MIXED, Pairs(min_margin=3.0)) == "below_margin"
    assert isinstance(select_pair(MIXED, Pairs(min_margin=2.9)), Pair)


def test_counts_add_up() -> None:
    groups = [MIXED, group(("a", 3.0), ("b", 3.0)), group(("a", None), ("b", None)), MIXED]
    outcomes, counts = select_pairs(groups, Pairs())
    assert len(outcomes) == 4
    assert counts.to_json() == {
        "total": 4, "kept": 2,
        "empty": 0, "no_score": 1, "one_candidate": 0, "identical": 0, "ties": 1, "below_margin": 0,
    }  # fmt: skip
    assert counts.total == counts.kept + sum(counts.dropped.values())
    assert counts.describe().startswith("2 pairs of 4 prompts (1: ")


def test_rows_have_the_fields_of_the_seed() -> None:
    mixed = group(("a", 4.0), ("", 1.0), ("c", None), ("d", 2.0))
    pair = select_pair(mixed, Pairs())
    assert isinstance(pair, Pair)
    raw = raw_row(mixed, pair)
    assert raw["candidates"][0] == {"response": "a", "score": 4.0, "judge_output": "Score: 4"}
    assert len(raw["candidates"]) == 4
    assert (raw["instruction"], raw["chosen"], raw["chosen_score"], raw["rejected"], raw["rejected_score"]) == (
        "Name a city.", "a", 4.0, "d", 2.0,
    )  # fmt: skip
    assert dpo_row(mixed, pair) == {
        "prompt": "Name a city.", "chosen": "a", "rejected": "d", "chosen_score": 4.0, "rejected_score": 2.0,
    }  # fmt: skip
    assert grpo_rows(mixed) == [
        {"prompt": "Name a city.", "response": "a", "reward": 4.0},
        {"prompt": "Name a city.", "response": "d", "reward": 2.0},
    ]
    weighted = gspo_row(mixed, 2.0)
    assert weighted is not None and weighted["responses"] == ["a", "d"]
    assert weighted["weights"] == pytest.approx([math.e / (math.e + 1), 1 / (math.e + 1)])
    without = raw_row(group(("a", 3.0), ("b", 3.0)), "ties")
    assert (without["chosen"], without["rejected"], without["dropped"]) == (None, None, "ties")
    assert gspo_row(group(("a", None)), 1.0) is None


def test_softmax_survives_large_scores() -> None:
    assert softmax([1000.0, 1000.0]) == [0.5, 0.5]
    assert softmax([0.0, -2000.0]) == [1.0, 0.0]


def test_earlier_turns_and_system_stay_with_the_prompt() -> None:
    prompt = Prompt(messages=(Message("system", "Rhyme."), Message("user", "Hi")), tools=({"name": "add"},))
    told: Group = group(("a", 4.0), ("b", 1.0), prompt=prompt)
    pair = select_pair(told, Pairs())
    assert isinstance(pair, Pair)
    messages = [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}]
    row = dpo_row(told, pair)
    assert row["prompt"] == messages and row["tools"] == [{"name": "add"}]
    assert row["chosen"] == [{"role": "assistant", "content": "a"}]
    assert raw_row(told, pair)["messages"] == messages
    assert grpo_rows(told)[1]["prompt"] == messages
    assert question().messages[0].text == "Name a city."
