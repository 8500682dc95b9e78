"""Files of a plan -> records and a ledger of every row.

    records, ledger = read_records(Data(files=("train.jsonl",)), ("conversation",))

Sources are read in order, their formats detected; then each source's `num_samples`, the weights of the mixture and the
`num_samples` of all are applied. What is left keeps the order of the files; the same plan and files give the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path

from whet.config.data import Data, Format, Source
from whet.data.detect import SAMPLE, detect, known_columns
from whet.data.formats import KIND, kind_for, read_row
from whet.data.jsonrows import RawRow
from whet.data.kinds import as_prompt
from whet.data.ledger import Ledger
from whet.data.locate import Place, locate, read_place
from whet.data.preferences import NothingToLearn
from whet.data.row import Row
from whet.errors import ConfigError, DataError, nearest
from whet.schema.records import Conversation, Record, RecordKind


def read_records(
    data: Data,
    want: tuple[RecordKind, ...],
    *,
    folders: Mapping[str, Path] = {},
    files: Sequence[str | Source] | None = None,
) -> tuple[list[Record], Ledger]:
    """Records of the kinds wanted, from `files` (else `data.files`), and what became of every row.

    Raises DataError where a file or format cannot be used, a row neither (unless `data.on_bad_row` is drop), or none is left.
    """
    sources = [
        Source(path=file) if isinstance(file, str) else file for file in (data.files if files is None else files)
    ]
    if not sources:
        raise ConfigError("is empty", field="data.files", fix="name at least one file")
    _check_columns(data.columns)
    ledger = Ledger()
    places = [locate(source, data, folders) for source in sources]
    groups = [
        _sampled(_read_place(place, data, want, ledger), place.num_samples, f"{data.seed}:{place.name}", ledger)
        for place in places
    ]
    records = list(chain.from_iterable(_mixed(groups, places, data.seed, ledger)))
    records = _sampled(records, data.num_samples, f"{data.seed}", ledger)
    if not records:
        first = next(iter(ledger.examples.values()), None)
        raise DataError(
            "no rows left",
            file=sources[0].path,
            found=ledger.describe(),
            fix=f"the first complaint was: {first}" if first else None,
        )
    return records, ledger


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


def _read_place(place: Place, data: Data, want: Sequence[RecordKind], ledger: Ledger) -> list[Record]:
    records: list[Record] = []
    for rows in read_place(place, ledger):
        records += _read_rows(rows, place, data, want, ledger)
    return records


def _read_rows(
    rows: Iterator[RawRow | DataError], place: Place, data: Data, want: Sequence[RecordKind], ledger: Ledger
) -> Iterator[Record]:
    """Records of one file, its format detected from its first rows."""
    named = (row if isinstance(row, DataError) else as_row(row, place) for row in rows)
    head = list(islice(named, SAMPLE))
    sound = [row for row in head if isinstance(row, Row)]
    if not sound:
        _bad(head, data, ledger)
        return
    check_mapped(sound, place.columns)
    format = detect(sound) if place.format == "auto" else place.format
    kind = kind_for(format, want)
    name = sound[0].origin.file
    if kind is None:
        raise wrong_kind(name, format, want)
    ledger.formats[name] = format
    for row in chain(head, named):
        yield from _read_one(row, format, kind, data, ledger)


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
        yield record


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
        return Row(value, origin, place.tags)
    theirs = set(place.columns.values())
    kept = {name: cell for name, cell in value.items() if name not in theirs}
    mapped = {ours: value[name] for ours, name in place.columns.items() if name in value}
    return Row({**kept, **mapped}, origin, place.tags)


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


def wrong_kind(file: str, format: Format, want: Sequence[RecordKind]) -> DataError:
    needed = " or ".join(PURPOSE[kind] for kind in want)
    return DataError(
        f"holds {PURPOSE[KIND[format]]}, but {needed} are needed here",
        file=file,
        found=f"format {format}",
        fix="give a file of that kind, or say what the columns are by data.format and data.columns",
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


def split_records(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Training and held-out records; all records with the same prompt fall on one side.

    A prompt's side depends on its text and the seed through a hash, so that rows added later move few others. At least
    one prompt is held out where `fraction` > 0 and there are two. Raises DataError where all rows share one prompt.
    """
    if not fraction:
        return list(records), []
    keys = [prompt_key(record) for record in records]
    sizes: dict[str, int] = {}
    for key in keys:
        sizes[key] = sizes.get(key, 0) + 1
    if len(sizes) < 2:
        raise DataError(
            "all rows have the same prompt: nothing can be held out",
            field="data.eval_fraction",
            found=f"{len(records)} rows",
            fix="give data.eval_files",
        )
    order = sorted(sizes, key=lambda key: sha256(f"{seed}:{key}".encode()).digest())
    wanted, held, count = fraction * len(records), set[str](), 0
    for key in order[:-1]:
        if held and count + sizes[key] > wanted + 0.5:
            continue
        held.add(key)
        count += sizes[key]
        if count >= wanted - 0.5:
            break
    return (
        [record for record, key in zip(records, keys, strict=True) if key not in held],
        [record for record, key in zip(records, keys, strict=True) if key in held],
    )


def prompt_key(record: Record) -> str:
    """What makes two records the same question: the turns before the first answer."""
    match record:
        case Conversation(messages=turns):
            first = next((index for index, message in enumerate(turns) if message.role == "assistant"), len(turns))
            turns = turns[:first]
        case _:
            turns = as_prompt(record).messages
    return repr([(message.role, message.content) for message in turns])
