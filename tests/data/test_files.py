# ruff: noqa: E501  rows are easier to read on one line
"""Files: exact lines, clear complaints, every container."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.data.files import read_file
from whet.data.hub import read_hub
from whet.data.jsonrows import document
from whet.errors import DataError


def rows(path: Path, **options: Any) -> list[tuple[int, Any]]:
    return [(-1, str(row)) if isinstance(row, DataError) else (row[0].line, row[1]) for row in read_file(path, path.name, **options)]


def write(path: Path, data: str | bytes) -> Path:
    raw = data if isinstance(data, bytes) else data.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


A, B = {"prompt": "a"}, {"prompt": "b\u2028c"}


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("x.json", '[{"prompt": "a"},\n\n  {"prompt":\n "b\u2028c"}]', [1, 3]),
        ("x.json", '\n{"version": 1, "data":\n[\n{"prompt": "a"},{"prompt": "b\u2028c"}]}', [4, 4]),
        ("x.json", '{"prompt": "a"}\n{"prompt": "b\u2028c"}\n', [1, 2]),
        ("x.json.gz", '[{"prompt": "a"},\n{"prompt": "b\u2028c"}]', [1, 2]),
        ("x.jsonl", '\ufeff{"prompt": "a"}\r\n\r\n{"prompt": "b\u2028c"}', [1, 3]),
        ("x.jsonl.gz", '{"prompt": "a"}\n{"prompt": "b\u2028c"}\n', [1, 2]),
        ("x.csv", '\ufeffprompt\n"a"\n\nb\u2028c\n', [2, 4]),
        ("x.csv", "\n\nprompt\na\nb\u2028c\n", [4, 5]),
        ("x.json", '[{"prompt": "a"}]\n[]\n[{"prompt": "b\u2028c"}]\n', [1, 3]),
    ],
)
def test_lines(tmp_path: Path, name: str, text: str, lines: list[int]) -> None:
    assert rows(write(tmp_path / name, text)) == list(zip(lines, [A, B], strict=True))


def test_csv_cells_over_several_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", 'prompt,completion\n"a\nb",1\nc,"2,3"\nd\n')
    found = rows(path)
    assert found[:2] == [(2, {"prompt": "a\nb", "completion": "1"}), (4, {"prompt": "c", "completion": "2,3"})]
    assert found[2] == (-1, "x.csv:5: 1 cells for 2 columns; quote cells that contain commas")


def test_plain_lines(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "x.txt", "one\n\n two\n")) == [(1, "one"), (3, " two")]
    assert rows(write(tmp_path / "x.jsonl", "one\ntwo\n"), plain=True) == [(1, "one"), (2, "two")]
    assert rows(write(tmp_path / "y.jsonl", '"one"\n')) == [(1, "one")]


def test_parquet_and_a_local_hub_folder(tmp_path: Path) -> None:
    table = pa.table({"messages": [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]], "n": [1, None]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet", row_group_size=1)
    found = rows(tmp_path / "x.parquet")
    assert found == [(1, {"messages": [{"role": "user", "content": "a"}], "n": 1}), (2, {"messages": [{"role": "user", "content": "b"}], "n": None})]
    with pytest.raises(DataError, match="is no Parquet file"):
        rows(write(tmp_path / "y.parquet", b"PAR1 no"))


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n')
    found = list(read_hub(str(tmp_path / "set")))
    assert [(origin.line, row) for origin, row in found] == [(1, {"prompt": "a"}), (2, {"prompt": "b"})]
    assert found[0][0].file.endswith("set[train]")
    with pytest.raises(DataError, match="cannot be read from the hub"):
        list(read_hub("nobody/has-this-data-set"))


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("x.jsonl", '{"a": 1}\n{"a": \n', "x.jsonl:2: broken JSON"),
        ("x.jsonl", "What is 2+3?\n", "if the lines are plain text, set data.format=text"),
        ("x.jsonl", "9" * 5000, "x.jsonl:1: unreadable JSON"),
        ("x.jsonl", "[1]\n", "x.jsonl:1: is no row (found [1])"),
        ("x.jsonl", '{"a": 1, "a": 1}', "x.jsonl:1: an object has one name twice (found 'a'); rename or remove one"),
        ("x.jsonl", '{"a": [{"b": 1, "c": 2, "b": 3}]}', "x.jsonl:1: an object has one name twice (found 'b')"),
        ("x.json", '[{"a": 1},\n{"a": 1, "a": 2}, {"a": 3}]', "x.json:2: an object has one name twice (found 'a')"),
        ("x.json", '{"a": 1, "a": 2}', "x.json:1: an object has one name twice (found 'a')"),
        ("x.jsonl", '{"a": "whole \\ud83d\\ude00", "b": ["cut \\ud83d"]}', "x.jsonl:1: b: holds half a character (\\ud83d)"),
        ("x.json", '[{"a": 1,\n"\\ud83d": 2}]', "x.json:1: \\ud83d: holds half a character (\\ud83d)"),
        ("x.txt", b"h\0i\0\n\0", "x.txt:1: is no text (found a byte 0x00); save the file as UTF-8"),
    ],
)
def test_bad_lines_are_handed_on(tmp_path: Path, name: str, data: str, complaint: str) -> None:
    assert any(complaint in text for line, text in rows(write(tmp_path / name, data)) if line == -1)


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("x.json", '[\n{"a": 1},\n{"a": }\n]', "x.json:3: broken JSON"),
        ("x.json", '[\n{"a": 1}\n{"a": 2}\n]', "x.json:3: broken JSON (',' or ']' expected)"),
        ("x.json", '[\n{"a": 1},\n', "x.json:3: broken JSON"),
        ("x.json", '{"a": 1', "x.json:1: broken JSON"),
        ("x.json", '[{"a": 1}]\ngarbage', "x.json:2: broken JSON (something follows the array) (found 'garbage')"),
        ("x.json", '{"data": [{"a": 1}],\n"data": [{"a": 2}]}', "x.json:2: holds two lists of one name (found 'data')"),
        ("x.json", "hello", "x.json:1: is no JSON"),
        ("x.json", "", "x.json: has no rows (found an empty file)"),
        ("x.json", " \n[ ]", "x.json: has no rows"),
        ("x.jsonl", "\n\n", "x.jsonl: has no rows"),
        ("x.csv", "prompt\n", "x.csv: has no rows"),
        ("x.csv", 'prompt\n"a\n', "x.csv:2: broken CSV"),
        ("x.jsonl", b'{"a": "ok"}\n{"a": "\xff"}\n', "x.jsonl:2: is not UTF-8 (found byte 0xff)"),
        ("x.json", b'[\n{"a": "\xff"}]', "x.json:2: is not UTF-8"),
        ("x.csv", b"prompt\n\xff\n", "x.csv:2: is not UTF-8"),
        ("x.csv", "prompt,note,completion,note\na,1,b,2\n", "x.csv:1: two columns have one name (found 'note')"),
        ("x.csv", "prompt,,\na,1,2\n", "x.csv:1: two columns have one name (found '')"),
        ("x.json", '{"train": [{"a": 1}], "test": [{"a": 2}]}', "x.json: holds several lists of rows (found train, test)"),
        ("x.json", "[{\"a\": " + "[" * 100_000, "x.json:1: unreadable JSON"),
        ("x.md", "hello", "x.md: is no data file (found suffix '.md')"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, data: str | bytes, complaint: str) -> None:
    with pytest.raises(DataError) as caught:
        rows(write(tmp_path / name, data))
    assert complaint in str(caught.value)


def test_a_bad_element_of_an_array_does_not_hide_the_others(tmp_path: Path) -> None:
    found = rows(write(tmp_path / "x.json", '{"version": 1, "data": [{"a": 1, "a": 2}, {"a": 3}], "end": [1]}'))
    assert [value for line, value in found if line > 0] == [{"a": 3}] and len(found) == 2


def test_cells_that_python_has_no_value_for(tmp_path: Path) -> None:
    """Text that is no UTF-8, a time beyond the year 9999, a place that no clock knows: one row, with its number."""
    words = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"], pa.binary()).buffers())
    pyarrow.parquet.write_table(pa.table({"prompt": words}), tmp_path / "x.parquet")
    assert rows(tmp_path / "x.parquet")[::2] == [(1, {"prompt": "a"}), (3, {"prompt": "c"})]
    assert rows(tmp_path / "x.parquet")[1][1].startswith("x.parquet:2: prompt: cannot be read (found 'utf-8' codec")
    for kind in (pa.timestamp("ms"), pa.timestamp("s", tz="Nowhere/City")):
        pyarrow.parquet.write_table(pa.table({"prompt": ["a"], "at": pa.array([2**52], kind)}), tmp_path / "y.parquet")
        assert rows(tmp_path / "y.parquet")[0][1].startswith("y.parquet:1: at: cannot be read (found ")


def test_parquet_with_one_name_twice_or_damage(tmp_path: Path) -> None:
    table = pa.table([pa.array(["word " * 9] * 500), pa.array(["b"] * 500)], names=["note", "note"])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"^x.parquet: two columns have one name \(found 'note'\); rename or remove one$"):
        rows(tmp_path / "x.parquet")
    pyarrow.parquet.write_table(table.rename_columns(["a", "b"]), tmp_path / "y.parquet")
    content = bytearray((tmp_path / "y.parquet").read_bytes())
    content[4:60] = b"\xff" * 56
    with pytest.raises(DataError, match=r"^y.parquet: .*$") as caught:
        rows(write(tmp_path / "y.parquet", bytes(content)))
    assert "\n" not in str(caught.value)


def test_a_gz_that_was_cut(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"prompt": "a"}\n' * 1000)
    (tmp_path / "x.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is no complete gzip file"):
        rows(tmp_path / "x.jsonl.gz")
    (tmp_path / "y.jsonl.gz").write_bytes(b"plain")
    with pytest.raises(DataError, match="is no complete gzip file"):
        rows(tmp_path / "y.jsonl.gz")


TEXT = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(values=st.lists(st.dictionaries(TEXT, JSON, max_size=3), min_size=1, max_size=4), indent=st.sampled_from([None, 0, 2]), ascii=st.booleans())
def test_any_json_array_is_read_as_json_reads_it(values: list[Any], indent: int | None, ascii: bool) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii)
    found = [row for row in document(text, "x") if not isinstance(row, DataError)]
    assert [row[1] for row in found] == values
    for origin, _ in found:
        assert text.split("\n")[origin.line - 1].lstrip().startswith("{") or text.split("\n")[origin.line - 1].startswith("[{")
