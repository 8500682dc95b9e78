"""Rows in JSON text, each with the exact line it starts on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from whet.errors import DataError
from whet.schema.records import Origin

LIST_KEYS = ("data", "rows", "train", "examples", "records", "items")
"""Where a JSON object keeps its rows."""

RawRow = tuple[Origin, Mapping[str, Any] | str]
"""Where a row stands and what it says: an object, or a text."""


def json_lines(lines: Iterable[tuple[int, str]], name: str) -> Iterator[RawRow | DataError]:
    """One row a line; a broken line is yielded as an error, and reading goes on."""
    for number, text in lines:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield _broken(name, number, error, text)
        else:
            yield _row(Origin(file=name, line=number), value)


def document(text: str, name: str) -> Iterator[RawRow | DataError]:
    """A JSON array of rows, an object with such an array under it, one object, or JSON lines in spite of the name."""
    start = _skip(text, 0)
    if text.startswith("[", start):
        return _elements(text, start, name)
    if text.startswith("{", start):
        return _object_rows(text, start, name)
    if start == len(text):
        return iter(())
    raise DataError(
        "is no JSON",
        file=name,
        line=_line(text, start),
        found=repr(text[start : start + 30]),
        fix="write an array of objects",
    )


def _object_rows(text: str, start: int, name: str) -> Iterator[RawRow | DataError]:
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise _unreadable(name, text, start, error) from None
    if _skip(text, end) < len(text):
        return json_lines(((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()), name)
    lists = [key for key, rows in value.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
    if not any(key in LIST_KEYS for key in lists):
        return iter([(Origin(file=name, line=_line(text, start)), value)])
    if len(lists) > 1:
        found = ", ".join(lists)
        raise DataError(
            "holds several lists of rows", file=name, found=found, fix="give the one to use a file of its own"
        )
    return _elements(text, _value_position(text, start, lists[0]), name)


def _value_position(text: str, start: int, wanted: str) -> int:
    """Where the value of a key begins in the text of an object that is known to be sound."""
    position = _skip(text, start + 1)
    while True:
        key, position = _DECODER.raw_decode(text, position)
        position = _skip(text, _skip(text, position) + 1)
        if key == wanted:
            return position
        _, position = _DECODER.raw_decode(text, position)
        position = _skip(text, _skip(text, position) + 1)


_DECODER = json.JSONDecoder()
_BLANK = " \t\r\n"


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BLANK:
        position += 1
    return position


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _unreadable(name: str, text: str, position: int, error: ValueError | RecursionError) -> DataError:
    """A document broken at a place behind which nothing can be read: no row of it can be dropped."""
    line = error.lineno if isinstance(error, json.JSONDecodeError) else _line(text, position)
    broken = _broken(name, line, error, "{")
    return DataError(broken.problem, file=name, line=line, found=broken.found, fix="mend the file there")


def _elements(text: str, start: int, name: str) -> Iterator[RawRow | DataError]:
    """The elements of a JSON array, each with the line it starts on. Raises DataError at the line where it breaks."""
    position, line, counted = _skip(text, start + 1), 1, 0
    if text.startswith("]", position):
        return
    while True:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise _unreadable(name, text, position, error) from None
        yield _row(Origin(file=name, line=line), value)
        end = _skip(text, end)
        if text.startswith("]", end):
            return
        if not text.startswith(",", end):
            found = "the end" if end == len(text) else repr(text[end : end + 20])
            raise DataError(
                "broken JSON (',' or ']' expected)",
                file=name,
                line=_line(text, end),
                found=found,
                fix="mend the file there",
            )
        position = _skip(text, end + 1)


def _broken(name: str, line: int, error: ValueError | RecursionError, text: str) -> DataError:
    prose = text.lstrip()[:1] not in ("{", "[", '"')
    fix = "if the lines are plain text, set data.format=text" if prose else "mend it there, or set data.on_bad_row=drop"
    if not isinstance(error, json.JSONDecodeError):  # numbers of thousands of digits, thousands of nested brackets
        return DataError("unreadable JSON", file=name, line=line, found=str(error)[:80], fix=fix)
    near = error.doc[max(0, error.pos - 15) : error.pos + 15].strip() or "the end"
    problem = f"broken JSON ({error.msg} in column {error.colno})"
    return DataError(problem, file=name, line=line, found=repr(near), fix=fix)


def _row(origin: Origin, value: Any) -> RawRow | DataError:
    if isinstance(value, dict | str):
        return origin, value
    return DataError(
        "is no row",
        file=origin.file,
        line=origin.line,
        found=json.dumps(value)[:40],
        fix="a row is a JSON object or a text",
    )
