"""Files of a plan -> records and a ledger of every row.

    records, ledger = read_records(Data(files=("train.jsonl",)), ("conversation",))

Sources are read in order, their formats detected; then each source's `num_samples`, the weights of the mixture and the
`num_samples` of all are applied. What is left keeps the order of the files; the same plan and files give the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from whet.config.data import Data, Format, Source
from whet.data.detect import LEVEL_OF, LEVELS, SAMPLE, detect, fits, known_columns
from whet.data.draw import KEPT, REASONS, draws, fates
from whet.data.formats import KIND, kind_for, read_row
from whet.data.graded import LABEL_NAMES, VALUE_NAMES
from whet.data.jsonrows import RawRow
from whet.data.ledger import Ledger
from whet.data.locate import Place, locate, read_place
from whet.data.preferences import REJECTED_NAMES, NothingToLearn
from whet.data.row import Row
from whet.data.split import split_records
from whet.data.thin import Kind, thinned
from whet.errors import ConfigError, DataError, nearest
from whet.schema.records import Record, RecordKind

__all__ = ["open_rows", "read_records", "split_records", "stream_records"]


def read_records(
    data: Data,
    want: tuple[RecordKind, ...],
    *,
    folders: Mapping[str, Path] = {},
    files: Sequence[str | Source] | None = None,
) -> tuple[list[Record], Ledger]:
    """Records of the kinds wanted, from `files` (else `data.files`), and what became of every row.

    Raises DataError where a file, or a row (unless `data.on_bad_row` is drop), cannot be used, or none is left.
    """
    ledger = Ledger()
    records = stream_records(data, want, ledger, folders=folders, places=places_of(data, folders, files))
    return list(records), ledger


Opener = Callable[[Place, Ledger], Iterator[Iterator[RawRow | DataError]]]
"""Raw rows of a source, an iterator a file: `read_place`, or that with something done to the rows."""


def stream_records(
    data: Data,
    want: tuple[RecordKind, ...],
    ledger: Ledger,
    *,
    folders: Mapping[str, Path] = {},
    places: Sequence[Place] | None = None,
    opener: Opener = read_place,
) -> Iterator[Record]:
    """The records of `read_records`, one at a time, each row written into the ledger as it is read.

    Where some are drawn (`num_samples`, weights that differ) everything is read twice: first to count. `places` stand
    in for `data.files`, `opener` reads them. Raises as `read_records` does, when it comes to the row.
    """
    places = places_of(data, folders) if places is None else places
    chosen: Sequence[NDArray[np.uint8] | None] = [None] * len(places)
    if draws(places, data):
        counts = [sum(1 for _ in _read_place(place, data, want, Ledger(), opener)) for place in places]
        chosen = fates(counts, places, data)
    none = True
    for place, fate in zip(places, chosen, strict=True):
        for record in drawn(_read_place(place, data, want, ledger, opener), fate, ledger):
            none = False
            yield record
    if none:
        raise none_left(places, ledger)


def drawn(records: Iterable[Record], fate: NDArray[np.uint8] | None, ledger: Ledger) -> Iterator[Record]:
    """Those of the records that are used, by a number of each (see `whet.data.draw`); None uses all."""
    if fate is None:
        yield from records
        return
    numbers = iter(fate.tolist())
    for record in records:
        number = next(numbers, None)
        if number is None:
            raise DataError("has more rows than a moment ago", file=record.origin.file, fix="read it when it is whole")
        if number == KEPT:
            yield record
        else:
            ledger.drop(REASONS[number], record.origin)


def places_of(
    data: Data, folders: Mapping[str, Path], files: Sequence[str | Source] | None = None
) -> list[Place]:  # fmt: skip
    """Where the sources lie: `files`, else those of the plan."""
    named = data.files if files is None else files
    if not named:
        raise ConfigError("is empty", field="data.files", fix="name at least one file")
    _check_columns(data.columns)
    return [locate(Source(path=file) if isinstance(file, str) else file, data, folders) for file in named]


def none_left(places: Sequence[Place], ledger: Ledger) -> DataError:
    first = next(iter(ledger.examples.values()), None)
    return DataError(
        "no rows left", file=places[0].name, found=ledger.describe(),
        fix=f"the first complaint was: {first}" if first else None,
    )  # fmt: skip


def _check_columns(columns: Mapping[str, str]) -> None:
    known = known_columns()
    for name in columns:
        if name not in known:
            guess = nearest(name, known)
            raise ConfigError(
                "unknown column of ours",
                field=f"data.columns.{name}",
                fix=f"did you mean {guess!r}?" if guess else "write {OURS: YOURS}",
            )


def _read_place(
    place: Place, data: Data, want: Sequence[RecordKind], ledger: Ledger, opener: Opener
) -> Iterator[Record]:
    for rows in opener(place, ledger):
        opened = open_rows(rows, place)
        kind = kind_in(opened, want, ledger)
        for row in opened.rows:
            yield from records_of(known(row, place, opened.format), opened.format, kind, data, ledger)


def kind_in(opened: Opened, want: Sequence[RecordKind], ledger: Ledger) -> RecordKind:
    """The kind of record that a file's rows are read as; its format is noted. Raises DataError where none will do."""
    if opened.format == "auto":
        return want[0]
    kind = kind_for(opened.format, want)
    if kind is None:
        raise wrong_kind(opened, want)
    ledger.formats[opened.name] = opened.format
    return kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """One file with its format known; `auto` where not one of its rows could be read."""

    name: str
    format: Format
    rows: Iterator[Row | DataError]


SEARCHED = 100 * SAMPLE
"""Rows among which the first sound one is looked for."""


def open_rows(rows: Iterator[RawRow | DataError], place: Place) -> Opened:
    """The rows of a file under our column names, and the format its first rows show."""
    head = list(islice(rows, SAMPLE))
    while all(isinstance(raw, DataError) for raw in head) and len(head) < SEARCHED:
        if not (more := list(islice(rows, SAMPLE))):
            break
        head += more
    check_mapped(head, place.columns)
    named = (row if isinstance(row, DataError) else as_row(row, place) for row in chain(head, rows))
    first = list(islice(named, len(head)))
    sound = [row for row in first if isinstance(row, Row)]
    format = place.format
    if sound:
        format = detect(sound) if format == "auto" else format
        if format == "ultrafeedback" and not any("completions" in row for row in sound):
            format = "preference"  # its binarized form
    return Opened(name=sound[0].origin.file if sound else place.name, format=format, rows=chain(first, named))


def records_of(
    row: Row | DataError, format: Format, kind: RecordKind, data: Data, ledger: Ledger
) -> Iterator[Record]:  # fmt: skip
    """The records of a row, all written into the ledger. Raises DataError where the plan says so."""
    if isinstance(row, DataError):
        _bad(row, data, ledger)
        return
    try:
        records = read_row(row, format, kind)
    except NothingToLearn as reason:
        ledger.refuse(str(reason), row.origin)
        return
    except DataError as error:
        _bad(error, data, ledger)
        return
    for record in records:
        ledger.keep(record.origin)
        yield record if data.max_images is None else fewer_pictures(record, data.max_images, ledger)


GRADES, TEACHES = 0, 1
"""Levels of formats."""
GRADED_NAMES = {"response_0", "responses", "completions", *REJECTED_NAMES, *LABEL_NAMES, *VALUE_NAMES}
"""Every row that grades has one of these: to look for them is cheap."""


def known(row: Row | DataError, place: Place, format: Format) -> Row | DataError:
    """The row, unless it is one whose format nobody knows, since nothing before it in the file could be read, or one
    that grades answers in a file that was found to teach: its answer may be a bad one."""
    if isinstance(row, DataError):
        return row
    if format == "auto":
        return row.error("comes after many unreadable rows", field="format", fix="name it by data.format")
    if place.format == "auto" and LEVEL_OF.get(format) == TEACHES and not GRADED_NAMES.isdisjoint(row.values):
        graded = next((name for name, test in LEVELS[GRADES].items() if test(row)), None)
        if graded is not None:
            return DataError(
                f"a {graded} row among {format} rows",
                file=row.origin.file,
                line=row.origin.line,
                found=f"fields {', '.join(row.values)}",
                fix=f"give each format a file of its own, or set data.format={format}",
            )
    return row


def fewer_pictures(record: Kind, most: int, ledger: Ledger) -> Kind:
    """The record with at most so many pictures; it is written down where some were left out."""
    fewer = thinned(record, most)
    if fewer is not record:
        ledger.thin(record.origin)
    return fewer


def _bad(error: DataError, data: Data, ledger: Ledger) -> None:
    """Stop at a row that cannot be read, or write it down, as the plan says."""
    if data.on_bad_row == "error":
        raise error
    ledger.refuse_error(error)


def as_row(raw: RawRow, place: Place) -> Row:
    """A raw row under our column names; a plain line is a prompt. A column of our name beside the one that is mapped to
    it stays, as `original_NAME`."""
    origin, value = raw
    if isinstance(value, str):
        return Row({"prompt": value}, origin, place.tags)
    if not place.columns:
        return Row(value, origin, place.tags, place.images)
    theirs = set(place.columns.values())
    mapped = {ours: value[name] for ours, name in place.columns.items() if name in value}
    kept = {
        f"original_{name}" if name in mapped else name: cell for name, cell in value.items() if name not in theirs
    }
    return Row({**kept, **mapped}, origin, place.tags, place.images)


def check_mapped(rows: Sequence[RawRow | DataError], columns: Mapping[str, str]) -> None:
    """Every column the user mapped must be there in some row. Raises DataError with the nearest name otherwise."""
    sound = [row for row in rows if not isinstance(row, DataError) and not isinstance(row[1], str)]
    present = {name for _, value in sound for name in value}
    for ours, theirs in columns.items():
        if sound and theirs not in present:
            guess = nearest(theirs, present)
            raise DataError(
                "no row has the column that data.columns names",
                file=sound[0][0].file,
                field=ours,
                found=repr(theirs),
                fix=f"did you mean {guess!r}?" if guess else f"the columns are {', '.join(sorted(present))}",
            )


PURPOSE: dict[RecordKind, str] = {
    "conversation": "conversations to learn from",
    "preference": "chosen and rejected answers",
    "rating": "answers with a label",
    "ranking": "ranked answers",
    "scored": "answers with a number",
    "prompt": "prompts without answers",
}


def wrong_kind(opened: Opened, want: Sequence[RecordKind]) -> DataError:
    """Says what is there and what is needed, and the format by which the same rows could serve."""
    needed = " or ".join(PURPOSE[kind] for kind in want)
    first = next((row for row in opened.rows if isinstance(row, Row)), None)
    other = next((format for format in (fits(first) if first else ()) if kind_for(format, want)), None)
    return DataError(
        f"holds {PURPOSE[KIND[opened.format]]}, but {needed} are needed here",
        file=opened.name,
        found=f"format {opened.format}",
        fix=f"to read the rows as that all the same, set data.format={other}"
        if other
        else "give a file of that kind, or say what the columns are by data.format and data.columns",
    )
