"""What a format can say of a record is written, and what it cannot is refused."""

from __future__ import annotations

import pytest

from whet.data.convert import writer_of
from whet.data.detect import detect
from whet.data.formats import read_row
from whet.data.row import Row
from whet.errors import DataError
from whet.schema.records import Conversation, Message, Origin

AT = Origin(file="a.jsonl", line=7)
CALL = {"name": "add", "arguments": {"a": 2}}
WEIGHED = Conversation(
    messages=(
        Message("user", "2 + 3?"), Message("assistant", "6", weight=0), Message("user", "Sure?"),
        Message("assistant", "", tool_calls=(CALL,), weight=0.5), Message("tool", "5"), Message("assistant", "5"),
    ),
    origin=AT,
)  # fmt: skip


@pytest.mark.parametrize("to", ["messages", "sharegpt"])
def test_weights_of_turns_come_back(to: str) -> None:
    row = Row(writer_of(to)(WEIGHED), AT)
    assert read_row(row, detect([row]), "conversation") == [WEIGHED]


def test_alpaca_has_no_place_for_a_weight() -> None:
    record = Conversation(messages=WEIGHED.messages[:3] + WEIGHED.messages[-1:], origin=AT)
    with pytest.raises(DataError, match=r"^a.jsonl:7: cannot be written as alpaca \(found an answer of weight 0\); w"):
        writer_of("alpaca")(record)
