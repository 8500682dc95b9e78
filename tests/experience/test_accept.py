"""Every answer has one fate; what is kept is a function of the group alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.experience.groups import question
from whet.config.reject import Accept
from whet.experience.accept import FATES, arrange, distance, pair_up, plain, shingles, sort_group
from whet.experience.sampled import Answer, Sampled


def sampled(*answers: tuple[str, float | None] | Answer) -> Sampled:
    """A prompt with answers from (text, score)."""
    made = [
        one
        if isinstance(one, Answer)
        else Answer(text=one[0], num_tokens=len(one[0]), finish_reason="stop", score=one[1])
        for one in answers
    ]
    return Sampled(key="k", prompt=question(), answers=tuple(made))


def cut(text: str, score: float) -> Answer:
    return Answer(text=text, num_tokens=9, finish_reason="length", score=score)


FAILED = Answer(text="", num_tokens=0, finish_reason="error", score=None, error="no answer: timeout")


def test_every_fate() -> None:
    group = sampled(
        ("Paris", 1), ("paris ", 1), ("Rome", 0), ("ROME", 0.0), ("", 1), ("Oslo", None), FAILED, cut("Paris is", 1),
        ("It is Paris", 1), ("That is Paris", 1.5),
    )  # fmt: skip
    fates = sort_group(group, Accept(max_per_prompt=2))
    assert fates.of == (
        "accepted", "duplicate", "rejected", "rejected_duplicate", "empty", "unscored", "failed", "cut", "accepted",
        "over_limit",
    )  # fmt: skip
    assert set(fates.of) == set(FATES)
    assert (fates.kept, fates.wrong) == ((0, 8), (2,))
    assert (fates.right, fates.scored) == (6, 8), "an empty answer has a score; one without is neither right nor wrong"


def test_what_a_plan_may_ask_for() -> None:
    group = sampled(("a", 0.6), ("a", 0.6), cut("b", 0.7), ("c", 0.4))
    assert sort_group(group, Accept(min_score=0.5)).of == ("accepted", "duplicate", "cut", "rejected")
    assert sort_group(group, Accept(min_score=0.5, unique=False, cut=True)).kept == (0, 1, 2)
    assert sort_group(group, Accept(min_score=0.65, cut=True)).of == (
        "rejected", "rejected_duplicate", "accepted", "rejected"
    )  # fmt: skip
    many = sampled(*[(f"answer {n}", 1) for n in range(9)])
    assert len(sort_group(many, Accept(max_per_prompt=None)).kept) == 9
    assert len(sort_group(many, Accept()).kept) == 4


def test_orders() -> None:
    texts = {0: "the answer is four", 2: "four", 3: "the answer is fours", 5: "IIII"}
    assert arrange(texts, "first") == [0, 2, 3, 5]
    assert arrange(texts, "shortest") == [2, 5, 0, 3]
    assert arrange(texts, "varied") == [0, 5, 2, 3], "the one that is nearly the first comes last"


def test_varied_takes_the_farthest_from_those_taken() -> None:
    texts = dict(enumerate(("aaaa bbbb", "aaaa bbbc", "cccc dddd", "cccc bbbb")))
    taken = arrange(texts, "varied")
    pieces = {place: shingles(text) for place, text in texts.items()}
    for number in range(1, len(taken)):
        near = {p: min(distance(pieces[p], pieces[q]) for q in taken[:number]) for p in taken[number:]}
        assert near[taken[number]] == max(near.values())


@pytest.mark.parametrize(
    ("left", "right"),
    [("Ja,  sicher\n", "ja, sicher"), ("ＡＢＣ １２", "abc 12"), ("STRASSE", "straße"), ("\u2003a", "a")],
)
def test_the_same_text(left: str, right: str) -> None:
    assert plain(left) == plain(right)


def test_pairs_are_of_like_length_and_use_an_answer_once() -> None:
    group = sampled(("right one", 1), ("no", 0), ("wrong one", 0), ("a right one, longer", 1), ("nope", 0))
    fates = sort_group(group, Accept())
    assert pair_up(group, fates, 1) == [(0, 2)]
    assert pair_up(group, fates, 5) == [(0, 2), (3, 4)]
    assert pair_up(group, fates, 0) == []
    only_right = sampled(("yes", 1), ("sure", 1))
    assert pair_up(only_right, sort_group(only_right, Accept()), 3) == []


def test_a_wrong_answer_that_says_what_a_right_one_says_is_counted_and_in_no_pair() -> None:
    group = sampled(("Four.", 1), ("four.", 0), ("five", 0), ("Four.", 1))
    fates = sort_group(group, Accept(unique=False))
    assert fates.of == ("accepted", "rejected_duplicate", "rejected", "accepted")
    assert pair_up(group, fates, 4) == [(0, 2)]


def test_an_exponent_makes_another_text() -> None:
    assert plain("2³") == plain("２^3") != plain("23")


TEXTS = st.text(alphabet="ab AＢ\n", max_size=6)
ANSWERS = st.builds(
    Answer,
    text=TEXTS,
    num_tokens=st.integers(0, 9),
    finish_reason=st.sampled_from(["stop", "length"]),
    score=st.none() | st.floats(-1, 2),
)


ORDERS = st.sampled_from(["first", "shortest", "varied"])


@given(st.lists(ANSWERS | st.just(FAILED), max_size=8), ORDERS, st.integers(1, 4))
def test_nothing_is_lost(answers: Sequence[Answer], order: Any, most: int) -> None:
    group = sampled(*answers)
    accept = Accept(order=order, max_per_prompt=most)
    fates = sort_group(group, accept)
    assert len(fates.of) == len(answers) == len(fates.is_right)
    assert sorted(fates.kept) == [place for place, fate in enumerate(fates.of) if fate == "accepted"]
    assert len(fates.kept) <= most and set(fates.of) <= set(FATES)
    texts = [plain(answers[place].text) for place in fates.kept]
    assert len(set(texts)) == len(texts)
    for fate, answer, right in zip(fates.of, answers, fates.is_right, strict=True):
        assert (fate in ("failed", "unscored")) == (answer.score is None)
        assert fate not in ("accepted", "over_limit", "cut", "duplicate") or right
    assert sort_group(group, accept) == fates
