"""Pairwise accuracy by hand: both orders of every item, and what the order decides."""

from __future__ import annotations

from typing import Any

import pytest

from whet.config.evaluate import VerdictTask
from whet.data.ledger import Ledger
from whet.errors import DataError
from whet.schema.records import Message, Origin, Prompt
from whet.stages.measure.answers import Measured
from whet.stages.measure.interval import proportion, wilson
from whet.stages.measure.ready import ReadyTask
from whet.stages.measure.store import Reply
from whet.stages.measure.verdict import measure_verdicts

FIRST, SECOND = "Image 1 is better", "Image 2 is better"


class Told:
    """A store whose replies are known."""

    def __init__(self, replies: list[str]) -> None:
        self._replies = replies

    def answer(self, owner: str, task: str, requests: Any, *_: Any, **__: Any) -> list[Reply]:
        return [
            Reply(owner=owner, task=task, key=request.key, digest="", text=text, num_tokens=1, finish_reason="stop")
            for request, text in zip(requests, self._replies, strict=True)
        ]


class Anyone:
    """A subject whose renderer asks anything."""

    label = "base"

    def engine(self, batch_size: int) -> None:
        raise AssertionError("the store knows every reply")

    class renderer:
        @staticmethod
        def ask(*_: Any, **__: Any) -> Any:
            class Asked:
                @staticmethod
                def request(key: str, *_: Any) -> Any:
                    return type("R", (), {"key": key})

            return Asked


def prompt(item: str, reference: str, line: int, **columns: Any) -> Prompt:
    return Prompt(
        messages=(Message("user", "?"),), reference=reference, columns={"item": item, **columns},
        origin=Origin(file="h.jsonl", line=line),
    )  # fmt: skip


def measures(prompts: list[Prompt], replies: list[str], **keys: Any) -> Measured:
    task = VerdictTask(**keys)
    ready = ReadyTask(
        name="pairs", task=task, prompts=tuple(prompts), keys=tuple(str(n) for n in range(len(prompts))),
        ledger=Ledger(),
    )  # fmt: skip
    return measure_verdicts(ready, task, Anyone(), Told(replies), 2)  # type: ignore[arg-type]


def measured(prompts: list[Prompt], replies: list[str], **keys: Any) -> dict[str, tuple[float, int]]:
    found = measures(prompts, replies, **keys)
    assert all(one.low <= one.value <= one.high for one in found.measures)
    return {one.metric: (one.value, one.num) for one in found.measures}


def answer(text: str) -> str:
    return f"<think>{FIRST}</think><answer>{text}</answer>"


BOTH = [
    prompt("a", FIRST, 1, d=1), prompt("a", SECOND, 2, d=1), prompt("b", SECOND, 3, d=2), prompt("b", FIRST, 4, d=2),
]  # fmt: skip


def test_one_that_sees_and_one_that_says_first() -> None:
    seen = measured(BOTH, [answer(FIRST), answer(SECOND), answer(SECOND), answer(FIRST)])
    assert seen == {"accuracy": (1, 2), "consistency": (1, 2), "first": (0.5, 2), "readable": (1, 2)}
    blind = measured(BOTH, [answer(FIRST)] * 4)
    assert blind == {"accuracy": (0.5, 2), "consistency": (0, 2), "first": (1, 2), "readable": (1, 2)}


def test_consistently_wrong_is_consistent_and_what_cannot_be_read_is_wrong() -> None:
    found = measured(BOTH, [answer(SECOND), answer(FIRST), "Image 2 is better", answer(FIRST)], by="d")
    assert found == {
        "accuracy": (0.25, 2), "accuracy/1": (0, 1), "accuracy/2": (0.5, 1), "consistency": (0.5, 2),
        "first": (0.75, 2), "readable": (0.75, 2),
    }  # fmt: skip


def test_a_tie_favours_no_place() -> None:
    tie = answer("Image 1 and Image 2 are equally good")
    assert measured(BOTH, [answer(FIRST), tie, tie, tie])["first"] == (1, 1)
    assert "first" not in measured(BOTH, [tie] * 4)


def test_samples_of_an_order_are_compared_one_by_one() -> None:
    found = measured(BOTH[:2], [answer(FIRST), answer(SECOND), answer(SECOND), answer(SECOND)], num_samples=2,
                     temperature=1.0)  # fmt: skip
    assert found["accuracy"] == (0.75, 1) and found["consistency"] == (0.5, 1)


def test_a_logged_answer_has_its_own_score() -> None:
    found = measures(BOTH[:2], [answer(FIRST), answer(SECOND), answer(FIRST), answer(SECOND)], num_samples=2,
                     temperature=1.0)  # fmt: skip
    assert [(row.completion, row.score) for row in found.samples] == [(answer(FIRST), 1.0), (answer(FIRST), 0.0)]


def test_items_asked_in_one_order_have_no_consistency_and_are_counted() -> None:
    replies = [answer(FIRST), answer(SECOND), answer(FIRST)]
    assert measured(BOTH[:3], replies) == {
        "accuracy": (0.5, 2), "consistency": (1, 1), "first": (0.75, 2), "readable": (1, 2),
    }  # fmt: skip
    [note] = measures(BOTH[:3], replies).ledger.notes
    assert note.startswith("1 of 2 items are asked in one order only")
    assert "consistency" not in measured([BOTH[0], BOTH[2]], [answer(FIRST)] * 2)
    assert measures(BOTH, [answer(FIRST)] * 4).ledger.notes == []


def test_intervals_count_the_answers_that_were_given() -> None:
    """One answer an item leaves Wilson's interval of the items, and two answers that differ make it no wider."""
    prompts = [prompt(str(number), FIRST, number) for number in range(4)]
    replies = [answer(FIRST), answer(FIRST), answer(FIRST), answer(SECOND)]
    [accuracy] = [one for one in measures(prompts, replies).measures if one.metric == "accuracy"]
    assert (accuracy.value, accuracy.low, accuracy.high) == (0.75, *wilson(0.75, 4))
    [blind] = [one for one in measures(BOTH, [answer(FIRST)] * 4).measures if one.metric == "accuracy"]
    assert (blind.low, blind.high) == wilson(0.5, 2)  # no spread between items: nothing shows more than two
    mixed = [prompt("a", FIRST, 1), prompt("a", SECOND, 2), prompt("b", FIRST, 3), prompt("c", FIRST, 4)]
    [some] = [one for one in measures(mixed, [answer(FIRST), answer(FIRST), answer(FIRST), answer(SECOND)]).measures
              if one.metric == "accuracy"]  # fmt: skip
    assert (some.low, some.high) == proportion([0.5, 1.0, 0.0], 4 / 3)[1:]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([prompt("a", FIRST, 1), prompt("a", FIRST, 2)], "once in each order"),
        ([*BOTH[:2], BOTH[0]], "once in each order"),
        ([prompt("a", "1", 1)], "is no verdict"),
        ([Prompt(messages=(Message("user", "?"),), reference=FIRST)], "no column 'item'"),
    ],
)
def test_rows_that_cannot_be_measured(prompts: list[Prompt], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measured(prompts, [""] * len(prompts))
