"""Records: what crosses between rooms is frozen, typed and knows where it came from."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import get_args

import pytest

from whet.schema import records
from whet.schema.records import (
    Conversation,
    Message,
    Origin,
    Part,
    Preference,
    Prompt,
    Ranking,
    Rating,
    RecordKind,
    Scored,
    kind_of,
)

ASK, ANSWER = (Message("user", "2+3?"),), (Message("assistant", "5"),)
EACH = (
    Conversation(messages=ASK + ANSWER),
    Preference(prompt=ASK, chosen=ANSWER, rejected=ANSWER),
    Rating(prompt=ASK, response=ANSWER, label=True),
    Ranking(prompt=ASK, responses=("5", "6"), ranks=(1, 2)),
    Scored(prompt=ASK, responses=("5",), values=(1.0,), kind="reward"),
    Prompt(messages=ASK),
)


def test_every_kind_has_its_word() -> None:
    assert {type(record) for record in EACH} == set(get_args(records.Record))
    assert tuple(kind_of(record) for record in EACH) == get_args(RecordKind)


def test_every_record_keeps_its_row_and_what_nobody_claimed() -> None:
    for record in EACH:
        assert {"origin", "columns"} <= {field.name for field in fields(record)}
        assert str(record.origin) == "<memory>:0"
        with pytest.raises(FrozenInstanceError):
            record.origin = Origin(file="a", line=1)  # type: ignore[misc]
    assert str(Origin(file="a.json", line=3)) == "a.json:3"


def test_text_leaves_images_out() -> None:
    mixed = Message("user", (Part("text", "What is "), Part("image", "cat.png"), Part("text", "this?")))
    assert mixed.text == "What is this?"
    assert ASK[0].text == "2+3?"
