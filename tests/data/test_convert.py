"""What a format can say of a record is written, and what it cannot is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from whet.config.data import Data
from whet.data.convert import convert, writer_of
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


def test_alpaca_has_no_place_for_a_call() -> None:
    turns = Message("user", "2 + 3?"), Message("assistant", "I add.", tool_calls=(CALL,))
    with pytest.raises(DataError, match=r"cannot be written as alpaca \(found an answer that calls a tool\)"):
        writer_of("alpaca")(Conversation(messages=turns, origin=AT))


def converted(path: Path, to: str = "messages") -> dict[str, object]:
    out = path.with_name("out.jsonl")
    convert(str(path), Data(), to, str(out))
    row: dict[str, object] = json.loads(out.read_text(), parse_constant=pytest.fail)
    return row


def test_a_column_with_a_name_of_the_format_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"instruction": "q", "output": "a", "messages": "MSG"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: messages: is a column of the row, .* \(found 'MSG'\)"):
        converted(path)
    path.write_text('{"prompt": "q", "completion": "a", "reference": 5}\n')
    assert converted(path, "prompt")["reference"] == "5", "a column that has become the field is no other"


def test_other_columns_are_json(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "q", "completion": "a", "x": [NaN, {"y": -Infinity}], "z": NaN}\n')
    row = converted(tmp_path / "a.jsonl")
    assert row["x"] == [None, {"y": None}] and row["z"] is None
    (tmp_path / "out.jsonl").unlink()
    table = pa.table({"prompt": ["q"], "completion": ["a"], "raw": [b"\x00\xff"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert converted(tmp_path / "a.parquet")["raw"] == "AP8="


def test_where_nothing_may_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "q", "completion": "a"}\n')
    (tmp_path / "link").symlink_to("nowhere")
    complaints = {"link": "link: exists already", "x" * 300: "cannot write .found File name too long"}
    for name, complaint in complaints.items():
        with pytest.raises(DataError, match=complaint):
            convert(str(path), Data(), "messages", str(tmp_path / name))
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", ["out.csv", "out.TXT", "out.parquet", "out.jsonl.gz"])
def test_a_name_of_another_format_is_refused(name: str, tmp_path: Path) -> None:
    """What stands in it would be read as something else: a line of JSON as a prompt."""
    (tmp_path / "a.jsonl").write_text('{"prompt": "q", "completion": "a"}\n')
    with pytest.raises(DataError, match=r"what is written are JSON lines \(found suffix"):
        convert(str(tmp_path / "a.jsonl"), Data(), "messages", str(tmp_path / name))
