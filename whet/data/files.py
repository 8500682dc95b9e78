"""Rows of one file, each with the exact line it starts on: JSON, JSONL, both also .gz, Parquet, CSV, plain lines.

A line that cannot be read is yielded as a `DataError` instead of raised, so that the caller can drop it or stop, as the
plan says. What makes the rest of the file unreadable (a broken JSON array, bytes that are no UTF-8) is raised.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from whet.data.jsonrows import RawRow, document, json_lines
from whet.errors import DataError, first_line
from whet.schema.records import Origin

SUFFIXES = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".parquet", ".csv", ".txt")
CSV_FIELD_LIMIT = 1 << 27
"""Characters in one CSV cell; Python's own limit of 131072 is too small for conversations."""

PARQUET_ROWS = 1024
"""Rows that are taken out of a Parquet file together."""
T = TypeVar("T")


def is_data_file(path: Path) -> bool:
    """Whether a file in a directory holds rows, by its name: not what LLaMA-Factory and `data fetch` write beside."""
    about = path.name == "dataset_info.json" or path.name.endswith(".source.json")
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".") and not about


def read_file(path: Path, name: str | None = None, *, plain: bool = False) -> Iterator[RawRow | DataError]:
    """The rows of a file, in order. `name` is what errors and origins call it; `plain` takes every line as text.

    Raises DataError where the file has no rows, or cannot be read on.
    """
    name = name or str(path)
    count = 0
    for row in unreadable(_rows(path, name, plain), name):
        count += 1
        yield row
    if not count:
        raise DataError("has no rows", file=name, found="an empty file" if not path.stat().st_size else None)


def unreadable(reading: Iterator[T], name: str) -> Iterator[T]:
    """The same; what stops it becomes a DataError in which the file has this name."""
    try:
        yield from reading
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError("is no complete gzip file", file=name, found=str(error)) from None
    except OSError as error:
        raise DataError("cannot be read", file=name, found=error.strerror or first_line(error)) from None


def _rows(path: Path, name: str, plain: bool) -> Iterator[RawRow | DataError]:
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    match kind:
        case _ if plain and kind != "parquet":
            return _file_lines(path, name, "text")
        case "json":
            return _document(path, name)
        case "jsonl" | "ndjson":
            return _file_lines(path, name, "json")
        case "csv":
            return _csv_rows(path, name)
        case "parquet":
            return _parquet_rows(path, name)
        case "txt":
            return _file_lines(path, name, "text")
        case _:
            raise DataError(
                "is no data file", file=name, found=f"suffix {path.suffix!r}", fix=f"use {', '.join(SUFFIXES)}"
            )


def open_file(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _file_lines(path: Path, name: str, kind: Literal["json", "text"]) -> Iterator[RawRow | DataError]:
    with open_file(path) as handle:
        yield from rows_of_lines(lines_of(handle, name), name, kind)


def lines_of(lines: Iterable[bytes], name: str, *, first: int = 1) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank. Only a line feed ends a line: U+2028 may stand inside JSON text."""
    for number, line in enumerate(lines, first):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(
                "is not UTF-8",
                file=name,
                line=number,
                found=f"byte 0x{line[error.start]:02x}",
                fix="save the file as UTF-8",
            ) from None
        if text and not text.isspace():
            yield number, text


def rows_of_lines(
    lines: Iterable[tuple[int, str]], name: str, kind: Literal["json", "text"]
) -> Iterator[RawRow | DataError]:
    """A row a line: its JSON, or the line as it is."""
    if kind == "json":
        return json_lines(lines, name)
    return (_plain(Origin(file=name, line=number), text) for number, text in lines)


def _plain(origin: Origin, text: str) -> RawRow | DataError:
    if "\0" in text:  # every second byte of UTF-16 is one, and they are sound UTF-8
        return DataError(
            "is no text", file=origin.file, line=origin.line, found="a byte 0x00", fix="save the file as UTF-8"
        )
    return origin, text


def _document(path: Path, name: str) -> Iterator[RawRow | DataError]:
    with open_file(path) as handle:
        content = handle.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _undecodable(content.split(b"\n"), name) from None
    yield from document(text, name)


def _undecodable(lines: Iterable[bytes], name: str) -> DataError:
    """What is wrong with lines of which one is no UTF-8, and which it is."""
    try:
        for _ in lines_of(lines, name):
            pass
    except DataError as error:
        return error
    return DataError("has changed while it was read", file=name, fix="read it when it is whole")


def _csv_rows(path: Path, name: str) -> Iterator[RawRow | DataError]:
    csv.field_size_limit(CSV_FIELD_LIMIT)
    with open_file(path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle, strict=True)
        try:
            header = next(filter(None, reader), [])
            _no_name_twice(header, name, line=reader.line_num)
            before = reader.line_num
            for cells in reader:
                origin, before = Origin(file=name, line=before + 1), reader.line_num
                if not cells:
                    continue
                if len(cells) != len(header):
                    yield DataError(
                        f"{len(cells)} cells for {len(header)} columns",
                        file=name,
                        line=origin.line,
                        fix="quote cells that contain commas",
                    )
                else:
                    yield origin, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise DataError(
                f"broken CSV ({error})", file=name, line=reader.line_num, fix="mend the file there"
            ) from None
        except UnicodeDecodeError:
            with open_file(path) as lines:
                raise _undecodable(lines, name) from None


def _no_name_twice(header: Sequence[str], name: str, *, line: int | None = None) -> None:
    """Raises DataError where two columns have one name: a row has room for the cell of one."""
    twice = next((column for column, num in Counter(header).items() if num > 1), None)
    if twice is not None:
        fix = "rename or remove one"
        raise DataError("two columns have one name", file=name, line=line, found=repr(twice), fix=fix)


def _parquet_rows(path: Path, name: str) -> Iterator[RawRow | DataError]:
    first = 1
    for batch in parquet_batches(path, name):
        yield from parquet_rows(batch, name, first=first)
        first += len(batch)


def parquet_batches(path: Path, name: str) -> Iterator[Any]:
    """The rows of a Parquet file, a pyarrow.RecordBatch of some of them at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise DataError("is no Parquet file", file=name, found=first_line(error)[:80]) from None
    with table:
        _no_name_twice(table.schema_arrow.names, name)
        try:
            yield from table.iter_batches(batch_size=PARQUET_ROWS)
        except pyarrow.ArrowException as error:
            raise DataError("is a damaged Parquet file", file=name, found=first_line(error)[:80]) from None


def parquet_rows(batch: Any, name: str, *, first: int) -> Iterator[RawRow | DataError]:
    """Parquet has no lines: the number is the row's, counted from 1. Of a batch with a cell that Python has no value
    for (text that is no UTF-8, a date beyond the year 9999) each row is read by itself."""
    try:
        values = batch.to_pylist()
    except (ValueError, OverflowError, LookupError):
        for number in range(len(batch)):
            yield _parquet_row(batch.slice(number, 1), Origin(file=name, line=first + number))
    else:
        for number, value in enumerate(values, first):
            yield Origin(file=name, line=number), value


def _parquet_row(row: Any, origin: Origin) -> RawRow | DataError:
    value = {}
    for column, cells in zip(row.schema.names, row.columns, strict=True):
        try:
            (value[column],) = cells.to_pylist()
        except (ValueError, OverflowError, LookupError) as error:  # also UnicodeDecodeError and what Arrow raises
            fix = "mend it, remove the column, or set data.on_bad_row=drop"
            found = first_line(error)[:80]
            return DataError(
                "cannot be read", file=origin.file, line=origin.line, field=column, found=found, fix=fix
            )
    return origin, value
