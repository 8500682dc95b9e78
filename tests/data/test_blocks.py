"""A file in blocks says what it says as a whole: the same rows on the same lines, the same complaints."""

from __future__ import annotations

import gzip
import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.data import blocks, files
from whet.data.blocks import LineBlock, RowBlock, file_blocks
from whet.data.files import read_file
from whet.errors import DataError

LINE = st.sampled_from([
    b'{"a": 1}', b'"text"', b'{"a": "\xe2\x80\xa8"}', b"", b"  ", b"{broken", b"[1]", b'{"b": "' + b"x" * 50 + b'"}\r',
])  # fmt: skip


def said(rows: Any) -> list[Any]:
    return [str(row) if isinstance(row, DataError) else row for row in rows]


def in_blocks(path: Path, *, plain: bool = False) -> list[Any]:
    found = file_blocks(path, path.name, plain=plain)
    assert found is not None
    made = [pickle.loads(pickle.dumps(block)) for block in found]
    assert not any(isinstance(block, RowBlock) for block in made)
    return [row for block in made for row in said(block.rows())]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(lines=st.lists(LINE, min_size=1, max_size=12), end=st.booleans(), size=st.integers(1, 80), plain=st.booleans())
@pytest.mark.parametrize("packed", [False, True])
def test_lines(
    tmp_path_factory: pytest.TempPathFactory, packed: bool, lines: list[bytes], end: bool, size: int, plain: bool
) -> None:
    content = b"\xef\xbb\xbf" + b"\n".join([*lines, b'{"c": 2}']) + b"\n" * end
    path = tmp_path_factory.mktemp("blocks") / ("a.jsonl.gz" if packed else "a.jsonl")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", size)
        assert in_blocks(path, plain=plain) == said(read_file(path, path.name, plain=plain))


def test_a_long_line_is_put_together_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 6_000_000 + "\ny\n")
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100)
    began = time.process_time()
    assert [len(row[1]) for row in in_blocks(path, plain=True)] == [6_000_000, 1]
    assert time.process_time() - began < 2, "else 60,000 pieces of up to 6 MB are copied"


def test_blocks_are_places_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What travels to another process is where to read, and lines stay whole."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": "x" * number}) + "\n" for number in range(100)))
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 500)
    found = [block for block in file_blocks(path, "a", plain=False) or () if isinstance(block, LineBlock)]
    assert [block.start for block in found[1:]] == [block.end for block in found[:-1]]
    assert found[-1].end == path.stat().st_size and all(block.content is None for block in found)
    assert max(block.end - block.start for block in found) < 500 + 120
    assert [block.first for block in found] == sorted({block.first for block in found})


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [f"q {n}" for n in range(10)]}), path)
    monkeypatch.setattr(files, "PARQUET_ROWS", 4)
    rows = in_blocks(path)
    assert [origin.line for origin, _ in rows] == list(range(1, 11)) and rows == said(read_file(path, path.name))


def test_bytes_that_are_no_text_are_named_by_their_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 9 + b'"\xff"\n')
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 20)
    with pytest.raises(DataError, match=r"a\.jsonl:10: is not UTF-8"):
        in_blocks(path)


def test_other_files_are_not_cut(tmp_path: Path) -> None:
    for name in ("a.json", "a.csv", "a.json.gz"):
        assert file_blocks(tmp_path / name, name, plain=False) is None
