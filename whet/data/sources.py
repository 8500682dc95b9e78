"""Files of a plan -> records and a ledger of every row.

    records, ledger = read_records(Data(files=("train.jsonl",)), ("conversation",))

Sources are read in order, their formats detected; then each source's `num_samples`, the weights of the mixture and the
`num_samples` of all are applied. What is left keeps the order of the files; the same plan and files give the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from whet.config.data import Data, Format, Source
from whet.data.detect import SAMPLE, detect, fits, known_columns
from whet.data.formats import KIND, kind_for, read_row
from whet.data.jsonrows import RawRow
from whet.data.ledger import Ledger
from whet.data.locate import Place, locate, read_place
from whet.data.preferences import NothingToLearn
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
    return _drawn(_places(data, folders, files), data, want, ledger, read_place), ledger


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

    What is drawn (`num_samples`, weights that differ) is drawn from a list in memory, and JSON arrays are read whole.
    `places` stand in for `data.files`, `opener` reads them. Raises as `read_records` does, when it comes to the row.
    """
    places = _places(data, folders, None) if places is None else places
    draws = data.num_samples is not None or any(place.num_samples is not None for place in places)
    if draws or len({place.weight for place in places}) > 1:
        yield from _drawn(places, data, want, ledger, opener)
        return
    none = True
    for place in places:
        for record in _read_place(place, data, want, ledger, opener):
            none = False
            yield record
    if none:
        raise _none_left(places, ledger)


def _drawn(
    places: Sequence[Place], data: Data, want: Sequence[RecordKind], ledger: Ledger, opener: Opener
) -> list[Record]:
    """All records, as far as they are drawn."""
    groups = [
        _sampled(
            list(_read_place(place, data, want, ledger, opener)), place.num_samples, f"{data.seed}:{place.name}", ledger
        )
        for place in places
    ]
    records = list(chain.from_iterable(_mixed(groups, places, data.seed, ledger)))
    records = _sampled(records, data.num_samples, f"{data.seed}", ledger)
    if not records:
        raise _none_left(places, ledger)
    return records


def _places(data: Data, folders: Mapping[str, Path], files: Sequence[str | Source] | None) -> list[Place]:
    """Where the sources lie."""
    named = data.files if files is None else files
    if not named:
        raise ConfigError("is empty", field="data.files", fix="name at least one file")
    _check_columns(data.columns)
    return [locate(Source(path=file) if isinstance(file, str) else file, data, folders) for file in named]


def _none_left(places: Sequence[Place], ledger: Ledger) -> DataError:
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
        if opened.format == "auto":
            _bad(opened.rows, data, ledger)
            continue
        kind = kind_for(opened.format, want)
        if kind is None:
            raise wrong_kind(opened, want)
        ledger.formats[opened.name] = opened.format
        for row in opened.rows:
            yield from _read_one(row, opened.format, kind, data, ledger)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """One file with its format known; `auto` where not one of its rows could be read."""

    name: str
    format: Format
    rows: Iterator[Row | DataError]


def open_rows(rows: Iterator[RawRow | DataError], place: Place) -> Opened:
    """The rows of a file under our column names, and the format its first rows show."""
    named = (row if isinstance(row, DataError) else as_row(row, place) for row in rows)
    head = list(islice(named, SAMPLE))
    sound = [row for row in head if isinstance(row, Row)]
    format = place.format
    if sound:
        check_mapped(sound, place.columns)
        format = detect(sound) if format == "auto" else format
        if format == "ultrafeedback" and not any("completions" in row for row in sound):
            format = "preference"  # its binarized form
    return Opened(name=sound[0].origin.file if sound else place.name, format=format, rows=chain(head, named))


def _read_one(row: Row | DataError, format: Format, kind: RecordKind, data: Data, ledger: Ledger) -> Iterator[Record]:
    if isinstance(row, DataError):
        _bad([row], data, ledger)
        return
    try:
        records = read_row(row, format, kind)
    except NothingToLearn as reason:
        ledger.refuse(str(reason), row.origin)
        return
    except DataError as error:
        _bad([error], data, ledger)
        return
    for record in records:
        ledger.keep(record.origin)
        yield record if data.max_images is None else fewer_pictures(record, data.max_images, ledger)


def fewer_pictures(record: Kind, most: int, ledger: Ledger) -> Kind:
    """The record with at most so many pictures; it is written down where some were left out."""
    fewer = thinned(record, most)
    if fewer is not record:
        ledger.thin(record.origin)
    return fewer


def _bad(errors: Iterable[Row | DataError], data: Data, ledger: Ledger) -> None:
    """Stop at a row that cannot be read, or write it down, as the plan says."""
    for error in errors:
        if not isinstance(error, DataError):
            continue
        if data.on_bad_row == "error":
            raise error
        ledger.refuse_error(error)


def as_row(raw: RawRow, place: Place) -> Row:
    """A raw row under our column names; a plain line is a prompt."""
    origin, value = raw
    if isinstance(value, str):
        return Row({"prompt": value}, origin, place.tags)
    if not place.columns:
        return Row(value, origin, place.tags, place.images)
    theirs = set(place.columns.values())
    kept = {name: cell for name, cell in value.items() if name not in theirs}
    mapped = {ours: value[name] for ours, name in place.columns.items() if name in value}
    return Row({**kept, **mapped}, origin, place.tags, place.images)


def check_mapped(rows: Sequence[Row], columns: Mapping[str, str]) -> None:
    """Every column the user mapped must be there in some row. Raises DataError with the nearest name otherwise."""
    present = {name for row in rows for name in row.values}
    for ours, theirs in columns.items():
        if ours not in present:
            guess = nearest(theirs, present)
            raise DataError(
                "no row has the column that data.columns names",
                file=rows[0].origin.file,
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


def _sampled(records: list[Record], num_samples: int | None, seed: str, ledger: Ledger) -> list[Record]:
    """That many records, drawn without repetition, in the order of the file. Fewer records are all kept."""
    if num_samples is None or num_samples >= len(records):
        return records
    chosen = set(random.Random(seed).sample(range(len(records)), num_samples))
    for index, record in enumerate(records):
        if index not in chosen:
            ledger.drop("not drawn (num_samples)", record.origin)
    return [record for index, record in enumerate(records) if index in chosen]


def _mixed(groups: list[list[Record]], places: Sequence[Place], seed: int, ledger: Ledger) -> list[list[Record]]:
    """Shares by weight. Equal weights use every row once; otherwise the source that is rarest for its weight limits."""
    weights = [place.weight for place in places]
    if len(set(weights)) == 1:
        return groups
    unit = min(len(group) / weight for group, weight in zip(groups, weights, strict=True))
    mixed = []
    for index, (group, weight) in enumerate(zip(groups, weights, strict=True)):
        quota = math.floor(unit * weight + 1e-9)
        chosen = set(random.Random(f"{seed}:mixture:{index}").sample(range(len(group)), quota))
        for row, record in enumerate(group):
            if row not in chosen:
                ledger.drop("left out by the mixture's weights", record.origin)
        mixed.append([record for row, record in enumerate(group) if row in chosen])
    return mixed
