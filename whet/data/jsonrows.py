"""Rows in JSON text, each with the exact line it starts on."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from whet.errors import DataError, printable
from whet.schema.records import Origin

LIST_KEYS = ("data", "rows", "train", "examples", "records", "items")
"""Where a JSON object keeps its rows."""

RawRow = tuple[Origin, Mapping[str, Any] | str]
"""Where a row stands and what it says: an object, or a text."""


class _Twice(ValueError):
    """An object has a name twice; what it says is the name."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _Twice(next(name for name, num in Counter(name for name, _ in pairs).items() if num > 1))
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
"""Raises _Twice where an object has two values of one name: either could be the one that is meant."""
_LENIENT = json.JSONDecoder()
"""Finds the end of such an object."""
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""How JSON writes half a character. Two that follow each other are a whole one."""


def json_lines(lines: Iterable[tuple[int, str]], name: str) -> Iterator[RawRow | DataError]:
    """One row a line; a broken line is yielded as an error, and reading goes on."""
    for number, text in lines:
        try:
            value = _DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            yield _broken(name, number, error, text)
        else:
            yield _row(Origin(file=name, line=number), value, halves=bool(_HALF.search(text)))


def document(text: str, name: str) -> Iterator[RawRow | DataError]:
    """JSON arrays of rows, an object with such an array under it, one object, or JSON lines in spite of the name."""
    start = _skip(text, 0)
    if text.startswith("[", start):
        return _elements(text, start, name, whole=True)
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
        value, end = _LENIENT.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise _unreadable(name, text, start, error) from None
    if _skip(text, end) < len(text):
        return json_lines(((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()), name)
    lists = [key for key, rows in value.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
    if not any(key in LIST_KEYS for key in lists):
        return iter([_element(text, start, _line(text, start), name)[0]])
    if len(lists) > 1:
        found = ", ".join(lists)
        raise DataError(
            "holds several lists of rows", file=name, found=found, fix="give the one to use a file of its own"
        )
    places = _value_positions(text, start, lists[0])
    if len(places) > 1:
        raise DataError(
            "holds two lists of one name", file=name, line=_line(text, places[1]), found=repr(lists[0]),
            fix="rename one and give it a file of its own",
        )  # fmt: skip
    return _elements(text, places[0], name, whole=False)


def _value_positions(text: str, start: int, wanted: str) -> list[int]:
    """Where the values of a key begin in the text of an object that is known to be sound."""
    found, position = list[int](), _skip(text, start + 1)
    while not text.startswith("}", position):
        key, position = _LENIENT.raw_decode(text, position)
        position = _skip(text, _skip(text, position) + 1)
        if key == wanted:
            found.append(position)
        _, position = _LENIENT.raw_decode(text, position)
        position = _skip(text, position)
        if text.startswith(",", position):
            position = _skip(text, position + 1)
    return found


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


def _elements(text: str, start: int, name: str, *, whole: bool) -> Iterator[RawRow | DataError]:
    """The elements of a JSON array, each with the line it starts on. Raises DataError at the line where it breaks.

    Where arrays are the `whole` text, others may follow, and nothing else.
    """
    position, line, counted = start, 1, 0
    while True:
        position = _skip(text, position + 1)
        more = not text.startswith("]", position)
        while more:
            line, counted = line + text.count("\n", counted, position), position
            row, end = _element(text, position, line, name)
            yield row
            position = _skip(text, end)
            if more := text.startswith(",", position):
                position = _skip(text, position + 1)
            elif not text.startswith("]", position):
                raise _stray("broken JSON (',' or ']' expected)", text, position, name)
        if not whole or (position := _skip(text, position + 1)) == len(text):
            return
        if not text.startswith("[", position):
            raise _stray("broken JSON (something follows the array)", text, position, name)


def _element(text: str, position: int, line: int, name: str) -> tuple[RawRow | DataError, int]:
    """The row that begins there, or what is wrong with it, and where it ends. Raises DataError where nobody can tell
    its end."""
    try:
        try:
            value, end = _DECODER.raw_decode(text, position)
        except _Twice as error:
            return _broken(name, line, error, "{"), _LENIENT.raw_decode(text, position)[1]
    except (ValueError, RecursionError) as error:
        raise _unreadable(name, text, position, error) from None
    origin = Origin(file=name, line=line)
    return _row(origin, value, halves=_HALF.search(text, position, end) is not None), end


def _stray(problem: str, text: str, position: int, name: str) -> DataError:
    found = "the end" if position == len(text) else repr(text[position : position + 20])
    return DataError(problem, file=name, line=_line(text, position), found=found, fix="mend the file there")


def _broken(name: str, line: int, error: ValueError | RecursionError, text: str) -> DataError:
    prose = text.lstrip()[:1] not in ("{", "[", '"')
    fix = "if the lines are plain text, set data.format=text" if prose else "mend it there, or set data.on_bad_row=drop"
    if isinstance(error, _Twice):
        fix = "rename or remove one, or set data.on_bad_row=drop"
        return DataError("an object has one name twice", file=name, line=line, found=repr(str(error)), fix=fix)
    if not isinstance(error, json.JSONDecodeError):  # numbers of thousands of digits, thousands of nested brackets
        return DataError("unreadable JSON", file=name, line=line, found=str(error)[:80], fix=fix)
    near = error.doc[max(0, error.pos - 15) : error.pos + 15].strip() or "the end"
    problem = f"broken JSON ({error.msg} in column {error.colno})"
    return DataError(problem, file=name, line=line, found=repr(near), fix=fix)


def _row(origin: Origin, value: Any, *, halves: bool) -> RawRow | DataError:
    """The value where it can be a row; with `halves` it may hold half a character, which nothing could write."""
    if not isinstance(value, dict | str):
        return DataError(
            "is no row",
            file=origin.file,
            line=origin.line,
            found=json.dumps(value)[:40],
            fix="a row is a JSON object or a text",
        )
    if halves:
        for name, cell in value.items() if isinstance(value, dict) else [("", value)]:
            try:
                json.dumps([name, cell], ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                half = f"\\u{ord(error.object[error.start]):04x}"
                return DataError(
                    f"holds half a character ({half})",
                    file=origin.file,
                    line=origin.line,
                    field=printable(name) or None,
                    fix="repair or remove it, or set data.on_bad_row=drop",
                )
    return origin, value
