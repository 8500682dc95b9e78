"""A row is asked: extreme values are complaints like any other."""

from __future__ import annotations

import pytest

from whet.data.row import Row
from whet.errors import DataError
from whet.schema.records import Origin

AT = Origin(file="a.jsonl", line=7)


@pytest.mark.parametrize("value", ["[" * 100_000, "[" + "9" * 5000 + "]"], ids=["brackets", "digits"])
def test_json_in_a_text_that_nobody_can_read(value: str) -> None:
    with pytest.raises(DataError, match=r"^a\.jsonl:7: history: is unreadable JSON \(.*\) \(found '\["):
        Row({"history": value}, AT).listed("history")


def test_an_integer_beyond_every_float() -> None:
    with pytest.raises(DataError, match=r"^a\.jsonl:7: reward: is not a finite number \(found 1000"):
        Row({"reward": 10**400}, AT).maybe_number("reward")


def test_an_empty_cell_is_no_number_where_none_is_needed() -> None:
    row = Row({"score": " ", "margin": "0.5"}, AT)
    assert row.maybe_number("score", "margin") == 0.5 and row.maybe_number("score") is None
    with pytest.raises(DataError, match="score: is null"):
        row.take("score")
