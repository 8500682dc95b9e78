"""Answers that people scored: agreement and judge examples, worked by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Literal

import pytest

from whet.config.judge import Pointwise
from whet.experience.examples import (
    Example,
    ExampleCounts,
    agreeing_examples,
    agreement_with_people,
    human_examples,
    without_commonest,
)
from whet.experience.told import HumanScored, human_scored
from whet.rewards.pointwise import PointForm
from whet.schema.records import Message, Preference, Ranking, Record, Scored
from whet.schema.rollouts import Group, Judgement, Score

ASKED = (Message("user", "Name a city."),)
FORM = PointForm(config=Pointwise(), template="Q {instruction} A {response}")


def told(*values: float, reasons: tuple[str | None, ...] | None = None) -> HumanScored:
    (one,) = human_scored([
        Scored(prompt=ASKED, responses=tuple(f"city {n}" for n in range(len(values))), values=values, kind="reward")
    ])  # fmt: skip
    return one if reasons is None else replace(one, reasons=reasons)


def judged(one: HumanScored, *votes: tuple[float | None, ...]) -> Group:
    """Each vote has a score for every answer; an answer is worth the mean of what can be read."""
    judgements = tuple(
        Judgement(shown=(place,), reply=f" vote {number} Score: {value} ", reading=None if value is None else (value,))
        for place in range(len(one.values))
        for number, value in enumerate(vote[place] for vote in votes)
    )
    read = [[v[place] for v in votes if v[place] is not None] for place in range(len(one.values))]
    scores = tuple(Score(value=sum(mine) / len(mine) if mine else None) for mine in read)  # type: ignore[arg-type]
    return replace(one.group, judgements=judgements, scores=scores)


def test_every_kind_of_human_score_is_read_and_rows_of_a_prompt_come_together() -> None:
    records: list[Record] = [
        Scored(prompt=ASKED, responses=("Rome",), values=(4.0,), kind="reward", columns={"reason": "It is one."}),
        Ranking(prompt=(Message("user", "Other?"),), responses=("a", "b"), ranks=(2.0, 1.0)),
        Scored(prompt=ASKED, responses=("Roma",), values=(2.0,), kind="reward"),
        Preference(
            prompt=(Message("user", "Pair?"),), chosen=(Message("assistant", "x"),),
            rejected=(Message("assistant", "y"),),
        ),
    ]  # fmt: skip
    city, ranked, paired = human_scored(records)
    assert [c.text for c in city.group.completions] == ["Rome", "Roma"] and city.values == (4.0, 2.0)
    assert city.reasons == ("It is one.", None) and city.ordered == ((0, 1),)
    assert ranked.values == paired.values == (None, None)
    assert ranked.ordered == ((1, 0),) and paired.ordered == ((0, 1),)
    assert len({one.group.completions[0].key for one in (city, ranked, paired)}) == 3


def compared(better: str, worse: str, *scores: float) -> Preference:
    high, low = scores or (None, None)
    return Preference(
        prompt=ASKED, chosen=(Message("assistant", better),), rejected=(Message("assistant", worse),),
        chosen_score=high, rejected_score=low,
    )  # fmt: skip


def order(*records: Record) -> list[str]:
    """What people told apart among the answers to one prompt, `a>b` for each two."""
    (one,) = human_scored(records)
    texts = [completion.text for completion in one.group.completions]
    return [f"{texts[better]}>{texts[worse]}" for better, worse in one.ordered]


def ranked(responses: str, *ranks: float) -> Ranking:
    return Ranking(prompt=ASKED, responses=tuple(responses), ranks=ranks)


def scored(responses: str, *values: float, kind: Literal["reward", "weight"] = "reward") -> Scored:
    return Scored(prompt=ASKED, responses=tuple(responses), values=values, kind=kind)


def test_what_nobody_compared_is_not_told_apart() -> None:
    assert order(compared("A", "B"), compared("B", "C"), compared("X", "Y")) == ["A>B", "B>C", "X>Y"]
    assert order(compared("A", "B"), compared("A", "B"), compared("B", "A")) == [], "they do not agree"
    assert order(compared("A", "B", 4, 2), compared("X", "Y", 9, 8)) == ["A>B", "X>Y"], "whose scales may be two"
    assert order(ranked("abc", 1, 2, 2), ranked("de", 2, 1)) == ["a>b", "a>c", "e>d"]
    assert order(scored("ab", 0.7, 0.3, kind="weight"), scored("c", 1.0, kind="weight")) == ["a>b"]
    assert order(scored("a", 3), scored("b", 5), scored("c", 3), compared("d", "a")) == ["d>a", "b>a", "b>c"]


def test_a_comparison_is_no_score() -> None:
    counts = ExampleCounts()
    told = human_scored([compared("A", "B"), scored("A", 4.0)])
    assert [(e.question, e.score) for e in human_examples(told, FORM, counts)] == [("Q Name a city. A A", 4.0)]
    assert human_examples(human_scored([compared("A", "B")]), FORM, counts) == []
    assert (counts.kept, counts.dropped) == (1, {"no_score": 1})
    beside = human_examples(human_scored([compared("A", "B", 4.0, 2.0)]), FORM, counts)
    assert [example.score for example in beside] == [4.0, 2.0]


def test_agreement_by_hand() -> None:
    first, second, third = told(3.0, 1.0, 1.0), told(0.0, 1.0), told(5.0, 5.0)
    groups = [
        judged(first, (4.0, 2.0, 4.0)),  # 0 > 1 right, 0 > 2 a tie
        judged(second, (1.0, 3.0)),  # right, in the people's order
        judged(third, (1.0, 2.0)),  # people told nothing apart
    ]
    metrics = agreement_with_people([first, second, third], groups)
    assert metrics == {
        "human_agreement": pytest.approx(2.5 / 3), "human_agreement_num": 3, "human_same_order": 0.5,
    }  # fmt: skip
    unread = judged(second, (1.0, None))
    assert agreement_with_people([second], [unread]) == {"human_agreement_num": 0.0}


def test_the_first_vote_in_the_peoples_order_becomes_examples() -> None:
    one = told(3.0, 1.0, 1.0)
    group = judged(one, (4.0, None, 1.0), (2.0, 2.0, 1.0), (4.0, 3.0, 0.0), (5.0, 1.0, 1.0))
    counts = ExampleCounts()
    examples = agreeing_examples([one], [group], FORM, counts)
    assert [example.score for example in examples] == [4.0, 3.0, 0.0], "the third vote: B and C were not told apart"
    assert examples[1].row() == {
        "messages": [
            {"role": "user", "content": "Q Name a city. A city 1"},
            {"role": "assistant", "content": "vote 2 Score: 3.0"},
        ],
        "score": 3.0,
    }
    others = [(told(1.0, 1.0), (2.0, 3.0)), (told(2.0, 1.0), (None, 1.0)), (told(2.0, 1.0), (1.0, 1.0))]
    for scored, vote in others:
        agreeing_examples([scored], [judged(scored, vote)], FORM, counts)
    assert counts.to_json() == {
        "total": 4, "kept": 1, "no_order": 1, "unreadable": 1, "other_order": 1, "no_score": 0, "off_scale": 0,
    }  # fmt: skip


def test_people_in_the_judges_words() -> None:
    counts = ExampleCounts()
    rows = [told(4.0, 2.5, reasons=("Clear.", None)), told(7.0, 1.0)]
    assert [e.answer for e in human_examples(rows, FORM, counts)] == ["Clear.\nScore: 4", "Score: 2.5"]
    assert (counts.kept, counts.dropped) == (1, {"off_scale": 1})
    first = PointForm(config=Pointwise(template="score_first"), template="{instruction} {response}")
    assert human_examples(rows, first, ExampleCounts())[0].answer == "Score: 4\nClear."


def test_the_commonest_score_is_thinned_out_to_the_next() -> None:
    examples = [Example(question=f"{n}", answer="", score=s) for n, s in enumerate([4.0] * 9 + [3.0] * 4 + [1.0])]
    counts = ExampleCounts()
    kept = without_commonest(examples, 1, counts)
    assert Counter(example.score for example in kept) == {4.0: 4, 3.0: 4, 1.0: 1} and counts.left_out == 5
    assert kept == without_commonest(examples, 1, ExampleCounts()) != without_commonest(examples, 2, ExampleCounts())
    assert [int(example.question) for example in kept] == sorted(int(example.question) for example in kept)
    assert without_commonest(examples[:9], 1, ExampleCounts()) == examples[:9]
    assert without_commonest([], 1, ExampleCounts()) == []
