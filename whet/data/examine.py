"""What there is to say of a portion of a file, so that several processes can look at one: for `whet data check`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from whet.config.data import Data
from whet.data.decode import BadPicture
from whet.data.fit import OVERLONG
from whet.data.formats import read_row
from whet.data.ledger import Ledger
from whet.data.lines import Lines
from whet.data.picture_check import REMEMBERED, PictureCheck, Size
from whet.data.portions import Portion
from whet.data.preferences import NothingToLearn
from whet.data.recent import Recent
from whet.data.row import Row
from whet.data.sources import fewer_pictures
from whet.data.split import prompt_key
from whet.data.tokens import LengthOf, texts_of
from whet.errors import DataError
from whet.schema.records import Origin, Preference, Record, kind_of

SHOWN = 1000
"""Examples that are kept of one thing."""


@dataclass(slots=True)
class Noted:
    """Rows of which the same is to be said: where all of them are, and the first with what is said of each."""

    lines: Lines = field(default_factory=Lines)
    examples: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, origin: Origin, text: str) -> None:
        self.lines.add(origin)
        if len(self.examples) < SHOWN:
            self.examples.append(text)

    def merge(self, other: Noted) -> None:
        self.lines.merge(other.lines)
        self.examples += other.examples[: SHOWN - len(self.examples)]


@dataclass(slots=True)
class Contents:
    """Rows or prompts as 64 bits of a hash each, to find those that come again: of a billion, one may seem to that
    does not."""

    hashes: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    def add(self, content: str, line: int) -> None:
        self.hashes.append(int.from_bytes(blake2b(content.encode("utf-8", "replace"), digest_size=8).digest()))
        self.lines.append(line)

    def arrays(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        return np.array(self.hashes, np.uint64), np.array(self.lines, np.int64)


@dataclass(slots=True)
class Examined:
    """What a portion holds."""

    file: str
    num_rows: int = 0
    num_sound: int = 0
    """Rows that could be taken apart."""
    kinds: Counter[str] = field(default_factory=Counter)
    filled: Counter[str] = field(default_factory=Counter)
    """Column -> rows in which it has a value."""
    ledger: Ledger = field(default_factory=Ledger)
    bad_rows: Noted = field(default_factory=Noted)
    warnings: dict[str, Noted] = field(default_factory=dict)
    pictures: PictureCheck = field(default_factory=PictureCheck)
    rows: tuple[NDArray[np.uint64], NDArray[np.int64]] = Contents().arrays()
    prompts: tuple[NDArray[np.uint64], NDArray[np.int64]] = Contents().arrays()
    """Hash and line of each."""
    characters: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Length of each record."""
    tokens: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def warn(self, what: str, origin: Origin, more: str = "") -> None:
        self.warnings.setdefault(what, Noted()).add(origin, f"{origin}{more}")

    def refuse(self, error: DataError) -> None:
        self.ledger.refuse_error(error)
        self.bad_rows.add(Origin(file=error.file or "", line=error.line or 0), str(error))

    def drop(self, error: DataError, origin: Origin) -> None:
        """A record that was read, but cannot be used as it is."""
        self.ledger.drop(error.problem, origin, str(error))
        self.bad_rows.add(origin, str(error))


class Examiner:
    """Looks at portions. A process that looks at several remembers their pictures."""

    def __init__(self, data: Data, length_of: LengthOf | None) -> None:
        self._data, self._length_of = data, length_of
        self._pictures: Recent[str, Size | BadPicture] = Recent(REMEMBERED)

    def examine(self, portion: Portion) -> Examined:
        """Raises DataError for a row that stops training though bad rows are dropped, ModelError where the template
        itself is at fault; else what is wrong with rows is noted."""
        found = Examined(file="", pictures=PictureCheck(_seen=self._pictures))
        rows, prompts = Contents(), Contents()
        characters, tokens = list[int](), list[int]()
        for row in portion.rows():
            found.num_rows += 1
            if isinstance(row, DataError):
                found.refuse(row)
                continue
            found.file = row.origin.file
            _note_columns(row, found, rows)
            for record in self._records(row, portion, found):
                prompts.add(prompt_key(record), record.origin.line)
                characters.append(_characters(record))
                tokens += self._tokens(record, found)
        found.rows, found.prompts = rows.arrays(), prompts.arrays()
        found.characters, found.tokens = np.array(characters, np.int64), np.array(tokens, np.int64)
        found.pictures.forget()
        return found

    def _records(self, row: Row, portion: Portion, found: Examined) -> list[Record]:
        """The sound records of a row."""
        try:
            made = read_row(row, portion.format, portion.kind)
        except NothingToLearn as reason:
            found.ledger.refuse(str(reason), row.origin)
            return []
        except DataError as error:
            found.refuse(error)
            return []
        records: list[Record] = []
        for record in made:
            found.ledger.keep(record.origin)
            found.kinds[kind_of(record)] += 1
            if self._data.max_images is not None:
                record = fewer_pictures(record, self._data.max_images, found.ledger)
            if (bad := found.pictures.problem(record)) is not None:
                found.drop(bad, record.origin)
                continue
            if isinstance(record, Preference) and record.chosen == record.rejected:
                found.warn("chosen equals rejected: nothing to learn", record.origin)
            records.append(record)
        return records

    def _tokens(self, record: Record, found: Examined) -> list[int]:
        """The record's tokens as training would count them; what the template refuses and what is too long is noted."""
        length_of, most, origin = self._length_of, self._data.max_length, record.origin
        if length_of is None:
            return []
        turns, _ = texts_of(record)
        if length_of.folds_system and turns and turns[0].role == "system":
            found.ledger.note(
                "the checkpoint's template takes no system turn: its text begins the first question instead"
            )
        try:
            total, prompt = length_of(record)
        except DataError as error:
            found.drop(error, origin)
            return []
        if total > most and self._data.on_overlong == "error":
            refused = DataError(
                OVERLONG, file=origin.file, line=origin.line, found=f"{total} tokens, {most} allowed",
                fix="raise data.max_length, or set data.on_overlong to truncate or drop",
            )  # fmt: skip
            if self._data.on_bad_row == "drop":  # such a row stops training all the same
                raise refused
            found.drop(refused, origin)
        elif prompt >= most:
            found.warn(f"prompt alone fills max_length {most}", origin, f" ({prompt} tokens)")
        elif total > most:
            found.warn(f"longer than max_length {most}", origin, f" ({total} tokens)")
        if length_of.has_special(record):
            found.warn("the text holds special tokens of the checkpoint", origin)
        return [total]


def _note_columns(row: Row, found: Examined, contents: Contents) -> None:
    found.num_sound += 1
    for name, value in row.values.items():
        if value not in (None, "", [], {}) and not (isinstance(value, str) and not value.strip()):
            found.filled[name] += 1
    contents.add(json.dumps(row.values, sort_keys=True, ensure_ascii=False, default=str), row.origin.line)


def _characters(record: Record) -> int:
    messages, answers = texts_of(record)
    return sum(len(message.text) for message in messages) + sum(len(answer) for answer in answers)
