"""A file in blocks of rows that other processes can read: places in it where that is enough, else what was read.

    jsonl, text      bytes 0 to 1,048,400 from line 1, bytes 1,048,400 to 2,096,950 from line 5,290, ...
    the same, .gz    the bytes themselves
    Parquet          a batch of rows as Arrow has them
    all else         the rows

Whoever cuts a file looks for line ends and no more; what is said in the lines is read where the rows are needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from whet.data.files import lines_of, open_file, parquet_batches, parquet_rows, rows_of_lines, unreadable
from whet.data.jsonrows import RawRow
from whet.data.row import Row
from whet.errors import DataError

BLOCK_BYTES = 2**20
BLOCK_ROWS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class LineBlock:
    """Whole lines of a file."""

    path: Path
    name: str
    kind: Literal["json", "text"]
    first: int
    """Number of the first line."""
    start: int
    end: int
    """Bytes of the file: from `start` to before `end`."""
    content: bytes | None = None
    """What stands there, where finding it again would mean unpacking the file from its beginning."""

    def rows(self) -> Iterator[RawRow | DataError]:
        return unreadable(self._rows(), self.name)

    def _rows(self) -> Iterator[RawRow | DataError]:
        content = self.content
        if content is None:
            with self.path.open("rb") as handle:
                handle.seek(self.start)
                content = handle.read(self.end - self.start)
        yield from rows_of_lines(lines_of(content.split(b"\n"), self.name, first=self.first), self.name, self.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrowBlock:
    """Rows of a Parquet file."""

    batch: Any
    """A pyarrow.RecordBatch."""
    name: str
    first: int

    def rows(self) -> Iterator[RawRow | DataError]:
        return parquet_rows(self.batch, self.name, first=self.first)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Rows that have been read, under our column names."""

    read: tuple[Row | DataError, ...]


Block = LineBlock | ArrowBlock | RowBlock


def file_blocks(path: Path, name: str, *, plain: bool) -> Iterator[Block] | None:
    """The blocks of a file that can be cut without reading its rows; None for others.

    `plain` takes every line as text. Raises DataError where the file cannot be read on.
    """
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        return unreadable(_arrow_blocks(path, name), name)
    if plain or kind in ("jsonl", "ndjson", "txt"):
        return unreadable(_line_blocks(path, name, "text" if plain or kind == "txt" else "json"), name)
    return None


def row_blocks(rows: Iterator[Row | DataError]) -> Iterator[Block]:
    while read := tuple(islice(rows, BLOCK_ROWS)):
        yield RowBlock(read=read)


def _line_blocks(path: Path, name: str, kind: Literal["json", "text"]) -> Iterator[Block]:
    packed = path.name.lower().endswith(".gz")
    first, start, rest = 1, 0, list[bytes]()
    with open_file(path) as handle:
        while True:
            read = handle.read(BLOCK_BYTES)
            # A block ends behind the last line end; of a line longer than a block the pieces wait until its end comes.
            size = read.rfind(b"\n") + 1
            if read and not size:
                rest.append(read)
                continue
            content, rest = b"".join((*rest, read[:size])), [read[size:]]
            if content:
                end = start + len(content)
                yield LineBlock(
                    path=path, name=name, kind=kind, first=first, start=start, end=end,
                    content=content if packed else None,
                )  # fmt: skip
                first, start = first + content.count(b"\n"), end
            if not read:
                return


def _arrow_blocks(path: Path, name: str) -> Iterator[Block]:
    first = 1
    for batch in parquet_batches(path, name):
        yield ArrowBlock(batch=batch, name=name, first=first)
        first += len(batch)
