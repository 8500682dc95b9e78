"""Rows of one file, each with the exact line it starts on: JSON, JSONL, both also .gz, Parquet, CSV, plain lines.

A line that cannot be read is yielded as a `DataError` instead of raised, so that the caller can drop it or stop, as the
plan says. What makes the rest of the file unreadable (a broken JSON array, bytes that are no UTF-8) is raised.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from whet.data.jsonrows import RawRow, document, json_lines
from whet.errors import DataError
from whet.schema.records import Origin

SUFFIXES = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".parquet", ".csv", ".txt")
CSV_FIELD_LIMIT = 1 << 27
"""Characters in one CSV cell; Python's own limit of 131072 is too small for conversations."""


def is_data_file(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".") and path.name != "dataset_info.json"


def read_file(path: Path, name: str | None = None, *, plain: bool = False) -> Iterator[RawRow | DataError]:
    """The rows of a file, in order. `name` is what errors and origins call it; `plain` takes every line as text.

    Raises DataError where the file has no rows, or cannot be read on.
    """
    name = name or str(path)
    count = 0
    try:
        for row in _rows(path, name, plain):
            count += 1
            yield row
    except UnicodeDecodeError as error:
        raise DataError(
            "is not UTF-8", file=name, found=f"byte 0x{error.object[error.start]:02x}", fix="save it as UTF-8"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError("is no complete gzip file", file=name, found=str(error)) from None
    except OSError as error:
        raise DataError("cannot be read", file=name, found=error.strerror or str(error)) from None
    if not count:
        raise DataError("has no rows", file=name, found="an empty file" if not path.stat().st_size else None)


def _rows(path: Path, name: str, plain: bool) -> Iterator[RawRow | DataError]:
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    match kind:
        case _ if plain and kind != "parquet":
            return _text_rows(path, name)
        case "json":
            return _document(path, name)
        case "jsonl" | "ndjson":
            return json_lines(_lines(path, name), name)
        case "csv":
            return _csv_rows(path, name)
        case "parquet":
            return _parquet_rows(path, name)
        case "txt":
            return _text_rows(path, name)
        case _:
            raise DataError(
                "is no data file", file=name, found=f"suffix {path.suffix!r}", fix=f"use {', '.join(SUFFIXES)}"
            )


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank. Only a line feed ends a line: U+2028 may stand inside JSON text."""
    with _open(path) as handle:
        for number, line in enumerate(handle, 1):
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
            if text.strip():
                yield number, text


def _text_rows(path: Path, name: str) -> Iterator[RawRow]:
    for number, text in _lines(path, name):
        yield Origin(file=name, line=number), text


def _document(path: Path, name: str) -> Iterator[RawRow | DataError]:
    with _open(path) as handle:
        return document(handle.read().decode("utf-8-sig"), name)


def _csv_rows(path: Path, name: str) -> Iterator[RawRow | DataError]:
    csv.field_size_limit(CSV_FIELD_LIMIT)
    with _open(path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle, strict=True)
        try:
            header = next(reader, [])
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


def _parquet_rows(path: Path, name: str) -> Iterator[RawRow]:
    """Parquet has no lines: the number is the row's, counted from 1."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError("is no Parquet file", file=name, found=str(error).splitlines()[0][:80]) from None
    number = 0
    for batch in table.iter_batches(batch_size=1024):
        for value in batch.to_pylist():
            number += 1
            yield Origin(file=name, line=number), value
