"""Pair rules by hand, one row a rule."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.experience.groups import group, question
from whet.config.rollout import Pairs
from whet.experience.pairs import Candidate, Pair, select_pair, select_pairs
from whet.experience.rows import dpo_row, grpo_rows, gspo_row, raw_row, softmax
from whet.schema.records import Message, Prompt
from whet.schema.rollouts import Group, Score

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


def test_what_the_engine_failed_to_give_is_not_called_empty() -> None:
    lost = replace(MIXED.completions[0], text="", finish_reason="error", error="status 503")
    down = replace(MIXED, completions=(lost,) * 4, scores=(Score(value=None, error="no answer"),) * 4)
    assert select_pair(down, Pairs()) == "failed"


def test_counts_add_up() -> None:
    groups = [MIXED, group(("a", 3.0), ("b", 3.0)), group(("a", None), ("b", None)), MIXED]
    outcomes, counts = select_pairs(groups, Pairs())
    assert len(outcomes) == 4
    assert counts.to_json() == {
        "total": 4, "kept": 2,
        "failed": 0, "empty": 0, "no_score": 1, "one_candidate": 0, "identical": 0, "ties": 1, "below_margin": 0,
        "all_right": 0, "all_wrong": 0, "unchecked": 0, "pairs": 2,
    }  # fmt: skip
    assert counts.total == counts.kept + sum(counts.dropped.values())
    assert counts.describe().startswith("2 pairs of 4 prompts (1: ")


def test_rows_have_the_fields_of_the_seed() -> None:
    mixed = group(("a", 4.0), ("", 1.0), ("c", None), ("d", 2.0))
    pair = select_pair(mixed, Pairs())
    assert isinstance(pair, Pair)
    raw = raw_row(mixed, (pair,))
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
    assert raw_row(told, (pair,))["messages"] == messages
    assert grpo_rows(told)[1]["prompt"] == messages
    assert question().messages[0].text == "Name a city."


RANGED = group(("a" * 9, 5.0), ("b" * 4, 4.6), ("c" * 5, 2.0), ("d" * 8, 0.9), ("e" * 3, 0.0))
"""Scores from 0 to 5; every answer has as many tokens as letters."""


@pytest.mark.parametrize(
    ("rho", "chosen", "rejected"),
    [
        (0.0, "a", "e"),
        # top from 0.95 * 5 = 4.75: a alone; bottom to 0.05 * 5 = 0.25: e alone
        (0.05, "a", "e"),
        # top from 4.5: a and b, b is shorter; bottom to 0.5: e alone
        (0.1, "b", "e"),
        # top from 4: a and b; bottom to 1: d and e, d is longer
        (0.2, "b", "d"),
        # top from 3: a and b; bottom to 2: c (5 letters), d (8), e (3)
        (0.4, "b", "d"),
    ],
)
def test_length_control_by_hand(rho: float, chosen: str, rejected: str) -> None:
    outcomes, _ = select_pairs([RANGED], Pairs(length_control=rho))
    assert isinstance(outcomes[0], tuple)
    (pair,) = outcomes[0]
    assert (pair.chosen.text[0], pair.rejected.text[0]) == (chosen, rejected)


def test_length_control_measures_the_margin_of_what_it_chose() -> None:
    """b over d is 3.7 apart, and a over e would have been 5."""
    assert select_pairs([RANGED], Pairs(length_control=0.2, min_margin=3.6))[1].kept == 1
    assert select_pairs([RANGED], Pairs(length_control=0.2, min_margin=3.8))[0] == ["below_margin"]


def test_tiers_of_scores_that_are_nearly_one_hold_the_best_and_the_worst() -> None:
    """At this rho the edge of the top tier is rounded above the highest score."""
    outcomes, _ = select_pairs([group(("a", 6.8), ("b", 6.799999999999999))], Pairs(length_control=0.17981983816923555))
    assert isinstance(outcomes[0], tuple) and outcomes[0][0].chosen.text == "a"


def test_length_control_between_equal_lengths_takes_the_first() -> None:
    outcomes, _ = select_pairs([group(("aa", 4.9), ("bb", 5.0), ("cc", 0.0))], Pairs(length_control=0.1))
    assert isinstance(outcomes[0], tuple) and outcomes[0][0].chosen.text == "aa"


def texts(outcome: object) -> list[str]:
    assert isinstance(outcome, tuple)
    return [f"{pair.chosen.text}{pair.rejected.text}" for pair in outcome]


def test_all_pairs_above_the_margin_the_widest_first() -> None:
    (outcome,), counts = select_pairs([MIXED], Pairs(select="all"))
    assert texts(outcome) == ["cb", "cd", "ab", "ad", "ca"]
    assert (counts.kept, counts.pairs) == (1, 5) and "5 pairs of 1 of 1 prompts" in counts.describe()
    assert texts(select_pairs([MIXED], Pairs(select="all", min_margin=1.0))[0][0]) == ["cb", "cd", "ab", "ad"]
    assert texts(select_pairs([MIXED], Pairs(select="all", max_per_prompt=2))[0][0]) == ["cb", "cd"]
    assert texts(select_pairs([MIXED], Pairs(select="all", keep_ties=True))[0][0])[-1] == "bd"
    assert select_pairs([MIXED], Pairs(select="all", min_margin=3.0))[0] == ["below_margin"]


def test_a_text_scored_twice_stands_on_one_side_once() -> None:
    twice = group(("a", 5.0), ("b", 3.5), ("a", 1.0), ("c", 4.0))
    (outcome,), _ = select_pairs([twice], Pairs(select="all"))
    assert texts(outcome) == ["ca", "ba", "cb"], "a is worth 3"
    assert isinstance(outcome, tuple) and (outcome[0].rejected.score, outcome[0].rejected.index) == (3.0, 0)


@pytest.mark.parametrize("select", ["all", "best_random"])
def test_the_reasons_are_those_of_best_against_worst(select: str) -> None:
    cases = {
        "empty": group(("", None)), "no_score": group(("a", None), ("b", None)), "one_candidate": group(("a", 3.0)),
        "identical": group(("a", 3.0), ("a", 1.0)), "ties": group(("a", 3.0), ("b", 3.0)),
    }  # fmt: skip
    outcomes, counts = select_pairs(cases.values(), Pairs.model_validate({"select": select}))
    assert outcomes == list(cases) and counts.kept == 0


def test_best_against_a_random_worse_one() -> None:
    groups = [group(("a", 5.0), ("b", 1.0), ("c", 2.0), ("a", 0.0), ("d", 5.0))] * 2
    drawn = {texts(select_pairs(groups, Pairs(select="best_random"), seed=seed)[0][0])[0] for seed in range(40)}
    assert drawn == {"ab", "ac"}, "never itself, a copy of itself or an equal"
    again = [select_pairs(groups, Pairs(select="best_random"), seed=3)[0] for _ in range(2)]
    assert again[0] == again[1]
    assert select_pairs(groups, Pairs(select="best_random", min_margin=3.5), seed=1)[0][0] == (
        Pair(Candidate(0, "a", 5.0, 1), Candidate(1, "b", 1.0, 1)),
    )


def test_right_against_wrong_by_the_checker_the_judges_favourites() -> None:
    mixed = group(("r1", 1.0), ("w1", 4.0), ("r2", 3.0), ("w2", None), ("", 5.0))
    marks = [True, False, True, False, True]
    outcomes, _ = select_pairs([mixed], Pairs(select="right_wrong"), marks=[marks])
    assert outcomes == [(Pair(Candidate(2, "r2", 1.0, 2), Candidate(1, "w1", 0.0, 2)),)]
    cases = {"all_right": [True] * 2, "all_wrong": [False] * 2, "unchecked": [None] * 2}
    both = [group(("a", 1.0), ("b", 2.0))] * 3
    assert select_pairs(both, Pairs(select="right_wrong"), marks=list(cases.values()))[0] == list(cases)
    with pytest.raises(ValueError, match="checker"):
        select_pairs(both, Pairs(select="right_wrong"))


def test_a_row_of_several_pairs_shows_the_first_and_counts() -> None:
    outcome = select_pairs([MIXED], Pairs(select="all"))[0][0]
    row = raw_row(MIXED, outcome)
    assert (row["chosen"], row["rejected"], row["num_pairs"]) == ("c", "b", 5)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.integers(0, 5).map(float)), max_size=6),
    st.sampled_from(["best_worst", "all", "best_random", "right_wrong"]), st.floats(0, 3), st.booleans(),
)  # fmt: skip
def test_every_group_ends_in_one_count(
    answers: list[tuple[str, float | None]], select: str, margin: float, ties: bool
) -> None:
    config = Pairs.model_validate({"select": select, "min_margin": margin, "keep_ties": ties})
    some = group(("x", 1.0), *answers)
    outcomes, counts = select_pairs([some], config, marks=[[text in "ax" for text, _ in (("x", 1.0), *answers)]])
    assert counts.total == 1 == counts.kept + sum(counts.dropped.values())
    if isinstance(outcomes[0], tuple):
        for pair in outcomes[0]:
            assert pair.chosen.text != pair.rejected.text
            assert pair.margin > margin or (ties and pair.margin == 0) or select == "right_wrong"
