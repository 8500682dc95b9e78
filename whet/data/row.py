"""A row of a file on its way to a record: its values, where it stood, and which of them a format has used.

Formats ask a row for what they need. What is missing, null or empty becomes a `DataError` that names file, line and
field; what nobody asked for is left in `rest()` and ends in the record's `columns`. NaN and infinity are null: pandas
writes NaN for a cell without a value, and JSON has no such numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from whet.errors import DataError, first_line
from whet.schema.records import Origin

FOUND_LENGTH = 60
"""How much of a wrong value an error quotes."""


@dataclass(frozen=True, slots=True)
class Tags:
    """How a file names the parts of a turn, where it differs from the usual (`tags` of a dataset_info.json)."""

    role: str | None = None
    content: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    """The file's word for a role -> ours (system, user, assistant, tool, or `call` for a turn that is a tool call)."""


PLAIN = Tags()


class Row:
    """One row, read by asking. Names are ours: a user's `columns` mapping has been applied before."""

    __slots__ = ("_given", "_used", "folders", "origin", "tags", "values")

    def __init__(
        self, values: Mapping[str, Any], origin: Origin, tags: Tags = PLAIN, folders: Sequence[str] = ()
    ) -> None:
        """`folders` are where relative paths of pictures are looked for, the first that has one winning."""
        self.values, self.origin, self.tags, self.folders = _nulled(values), origin, tags, folders
        self._given = values
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Whether the row has a value there; null counts as none."""
        return self.values.get(name) is not None

    def error(self, problem: str, *, field: str, found: object = None, fix: str | None = None) -> DataError:
        quoted = None if found is None else quote(found)
        return DataError(problem, file=self.origin.file, line=self.origin.line, field=field, found=quoted, fix=fix)

    def take(self, name: str) -> Any:
        """The value under a name. Raises DataError where it is missing or null."""
        self._used.add(name)
        value = self.values.get(name)
        if value is None:
            keys = ", ".join(sorted(self.values)) or "nothing"
            raise self.error(
                "is null" if name in self.values else "is missing",
                field=name,
                found=self._given[name] if name in self.values else f"fields {keys}",
                fix=f"fill it in, name its column by data.columns={{{name}: YOURS}}, or set data.on_bad_row=drop",
            )
        return value

    def maybe(self, name: str) -> Any | None:
        """The value under a name, or None."""
        self._used.add(name)
        return self.values.get(name)

    def text(self, name: str) -> str:
        """A text that says something; a number counts as its digits. Raises DataError where it is empty."""
        text = self.as_text(self.take(name), name)
        if not text.strip():
            raise self.error("is empty", field=name, fix="fill it in, remove the row, or set data.on_bad_row=drop")
        return text

    def maybe_text(self, name: str) -> str:
        """A text that may be missing or empty."""
        value = self.maybe(name)
        return "" if value is None else self.as_text(value, name)

    def as_text(self, value: object, field: str) -> str:
        match value:
            case str():
                return self._encodable(value, field)
            case bool():
                raise self.error("is true or false, not text", field=field, found=value)
            case int():
                return str(value)
            case float() if math.isfinite(value):
                return str(value)
            case float():
                raise self.error("is not a finite number", field=field, found=value)
            case _:
                raise self.error(f"is {kind_of_value(value)}, not text", field=field, found=value)

    def _encodable(self, text: str, field: str) -> str:
        """The text, unless it holds half a character, as cut UTF-16 leaves it: no tokenizer could read that."""
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                half = f"\\u{ord(text[error.start]):04x}"
                raise self.error(f"holds half a character ({half})", field=field, fix="repair or remove it") from None
        return text

    def number(self, value: object, field: str) -> float:
        """A finite number. Raises DataError otherwise."""
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise self.error("is not a number", field=field, found=value) from None
        try:
            number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
        except OverflowError:  # an integer of hundreds of digits
            number = math.inf
        if not math.isfinite(number):
            raise self.error("is not a finite number", field=field, found=value)
        return number

    def maybe_number(self, *names: str) -> float | None:
        """The first of these that the row has, as a number. An empty text, as CSV has it, is null."""
        for name in names:
            value = self.maybe(name)
            if isinstance(value, str) and not value.strip():
                self.values = {**self.values, name: None}
            elif value is not None:
                return self.number(value, name)
        return None

    def listed(self, name: str) -> list[Any]:
        """A list that is not empty; JSON inside a string (as CSV cells have it) is opened."""
        value = self.opened(self.take(name), name)
        if not isinstance(value, list):
            raise self.error(f"is {kind_of_value(value)}, not a list", field=name, found=value)
        if not value:
            raise self.error("is an empty list", field=name)
        return value

    def opened(self, value: Any, field: str) -> Any:
        """The value, or what its JSON says where it is a string that begins like a list or an object."""
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            try:
                return json.loads(value)
            except json.JSONDecodeError as error:
                raise self.error(f"is broken JSON ({error.msg})", field=field, found=value) from None
            except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
                raise self.error(f"is unreadable JSON ({first_line(error)[:80]})", field=field, found=value) from None
        return value

    def which(self, names: Sequence[str]) -> str:
        """The one of several names that the row uses; the first is the proper one and wins.

        Raises DataError where none is there, or two that are equally good.
        """
        if names[0] in self:
            return names[0]
        present = [name for name in names if name in self]
        if len(present) > 1:
            raise self.error(
                f"two columns could be it: {', '.join(present)}",
                field=names[0],
                fix=f"choose by data.columns={{{names[0]}: {present[0]}}}",
            )
        if present:
            return present[0]
        return next((name for name in names if name in self.values), names[0])

    def was_read(self, name: str) -> bool:
        """Whether a format has used a value under this name."""
        return name in self and name in self._used

    def rest(self) -> dict[str, Any]:
        """What no format asked for."""
        return {name: value for name, value in self.values.items() if name not in self._used}


def _nulled(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values with null for numbers that are none."""
    if not any(map(_no_number, values.values())):  # nearly always
        return values
    return {name: None if _no_number(value) else value for name, value in values.items()}


def _no_number(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def finite(value: Any) -> Any:
    """The value with null for numbers that are none, however deep they stand."""
    match value:
        case dict():
            return {name: finite(inner) for name, inner in value.items()}
        case list() | tuple():
            return [finite(inner) for inner in value]
        case _:
            return None if _no_number(value) else value


def quote(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    text = text if len(text) <= FOUND_LENGTH else text[: FOUND_LENGTH - 1] + "…"
    return repr(text) if isinstance(value, str) and not value.startswith("fields ") else text


def kind_of_value(value: object) -> str:
    """What JSON calls a value, with its article."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case str():
            return "a text"
        case int() | float():
            return "a number"
        case list() | tuple():
            return "a list"
        case Mapping():
            return "an object"
        case _:
            return f"a {type(value).__name__}"
