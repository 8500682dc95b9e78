"""From files to rows ready for training: read, rendered, fitted and split once, and found again by what they are of.

    file ─► blocks ─► processes: rows ─► records ─► token ids ─► arrays ─► one file an array, mapped into memory

No process holds more than some blocks of rows. What the whole set decides (what is drawn, who is held out) it decides
by a few bytes a record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.config.data import Data, Source
from whet.data import store
from whet.data.draw import draws, fates
from whet.data.keys import picture_folders, rows_key
from whet.data.ledger import Ledger
from whet.data.locate import Place
from whet.data.places import pictures_of
from whet.data.portions import Portion, portions
from whet.data.render import CHUNK, Rendered, RenderedGroup, Renderer, fit, render_each
from whet.data.shelf import NoRoom, Shelf
from whet.data.sources import kind_in, none_left, places_of
from whet.data.split import held_out, prompt_number
from whet.data.spread import spread
from whet.data.store import NOTHING, Seen, Tokenised
from whet.data.table import Table, table_of
from whet.errors import DataError
from whet.ranks.pulse import beat
from whet.schema.records import Record, RecordKind


def tokenise(
    data: Data, kinds: tuple[RecordKind, ...], renderer: Renderer, *, folders: Mapping[str, Path] = {}
) -> Tokenised:
    """The rows of `data.files`, then those held out; from the token cache where they were made before.

    Of several processes that ask for the same rows one makes them. They are made again where a picture's file is
    another than it was. Raises DataError where files or records cannot be used, or there is no room for the rows.
    """
    job = Job(data=data, kinds=kinds, renderer=renderer, folders=folders)
    key, places = rows_key(data, kinds, renderer, folders), picture_folders(data, folders)
    if key is not None:
        try:
            if (found := store.load(key, places)) is not None:
                return found
            with store.only_maker(key):
                return store.load(key, places) or _make(job, key, places)
        except NoRoom as error:
            store.say_unwritable(error)
    try:
        return _make(job, None, places)
    except NoRoom as error:
        raise DataError(
            "no room for the token ids", field="data.files", found=error.strerror,
            fix="make room on the disk, or set WHET_CACHE to a folder that has some",
        ) from error  # fmt: skip


def _make(job: Job, key: str | None, folders: tuple[str, ...]) -> Tokenised:
    """The rows, kept under the key where there is one. Raises NoRoom."""
    with store.workplace(key) as folder:
        shelf = Shelf(folder)
        try:
            made = job.fill(shelf, folders)
        finally:
            shelf.abandon()
        # Files that were written to while they were read are not what the key says.
        if key is not None and made.num_train and job.key() == key:
            store.publish(folder, key, folders)
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What became of a portion."""

    table: Table
    ledger: Ledger
    prompts: NDArray[np.uint64]
    """[R] a number for the prompt of each of its R records; empty where nothing is split."""
    sizes: NDArray[np.int64]
    """[R] rows of each record, none where it was dropped; empty where nothing is split."""
    num_records: int
    seen: Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that decides what the rows are."""

    data: Data
    kinds: tuple[RecordKind, ...]
    renderer: Renderer
    folders: Mapping[str, Path]

    def key(self) -> str | None:
        return rows_key(self.data, self.kinds, self.renderer, self.folders)

    def fill(self, shelf: Shelf, folders: tuple[str, ...]) -> Tokenised:
        """Put all rows on the shelf, and say which of them are held out."""
        data, ledger = self.data, Ledger()
        splits = bool(data.eval_fraction) and not data.eval_files
        prompts, sizes, seen = _Growing(np.uint64), _Growing(np.int64), list[Seen]()
        for part in self._parts(data.files, ledger, splits=splits):
            shelf.add(part.table)
            prompts.add(part.prompts)
            sizes.add(part.sizes)
            seen += [part.seen] if len(part.seen.stamps) else []
        num, held_ledger = shelf.num_rows, Ledger()
        if data.eval_files:
            for part in self._parts(data.eval_files, held_ledger, splits=False):
                shelf.add(part.table)
                seen += [part.seen] if len(part.seen.stamps) else []
            if shelf.num_rows == num:
                raise none_left(places_of(data, self.folders, data.eval_files), held_ledger)
        out = np.arange(shelf.num_rows) >= num
        if splits and num:
            kept = sizes.all() > 0
            out = np.repeat(held_out(prompts.all()[kept], data.eval_fraction), sizes.all()[kept])
        order = np.concatenate([np.flatnonzero(~out), np.flatnonzero(out)])
        num_train = int((~out).sum())
        account = ledger.to_json() | {"rows": {"train": num_train, "eval": len(out) - num_train}}
        if data.eval_files:
            account["eval"] = held_ledger.to_json()
        return store.finish(shelf, order, num_train, account, ledger.describe(), Seen.joined(seen, folders))

    def _parts(self, files: Sequence[str | Source], ledger: Ledger, *, splits: bool) -> Iterator[Part]:
        """The parts of these files in order, written into the ledger. Raises DataError where there is no record."""
        places = places_of(self.data, self.folders, files)
        num = 0
        for part in spread(partial(self.part, splits=splits), self._portions(places, ledger)):
            ledger.merge(part.ledger)
            beat(f"tokenising, row {ledger.read:,}")
            num += part.num_records
            yield part
        if not num:
            raise none_left(places, ledger)

    def _portions(self, places: Sequence[Place], ledger: Ledger) -> Iterator[Portion]:
        """What is to be read; where some records are drawn, after everything has been read once to count them."""
        kind = partial(kind_in, want=self.kinds, ledger=ledger)
        if not draws(places, self.data):
            yield from (portion for _, portion in portions(places, kind, ledger))
            return
        notes = Ledger()
        counting = partial(kind_in, want=self.kinds, ledger=notes)
        numbers, counts = list[int](), list[int]()
        found = portions(places, counting, notes)

        def noted() -> Iterator[Portion]:
            for number, portion in found:
                numbers.append(number)
                beat("counting rows")
                yield portion

        counts = list(spread(self.count, noted()))
        totals = np.bincount(numbers, counts, minlength=len(places)).astype(np.int64).tolist()
        chosen = [iter(fate.tobytes()) for fate in fates(totals, places, self.data)]
        for (number, portion), count in zip(portions(places, kind, ledger), counts, strict=False):
            fate = np.frombuffer(bytes(islice(chosen[number], count)), np.uint8)
            yield replace(portion, fate=fate)

    def count(self, portion: Portion) -> int:
        """Records of a portion."""
        return sum(1 for _ in portion.records(self.data, Ledger()))

    def part(self, portion: Portion, *, splits: bool) -> Part:
        """The records of a portion rendered and brought to `data.max_length`."""
        data, ledger, renderer = self.data, Ledger(), self.renderer
        prompts, sizes, seen = list[int](), list[int](), list[Seen]()
        rows: list[Rendered | RenderedGroup] = []
        records = portion.records(data, ledger)
        num = 0
        while chunk := list(islice(records, CHUNK)):
            num += len(chunk)
            seen += _seen(chunk)
            if splits:
                prompts += [prompt_number(record, data.seed) for record in chunk]
            for made in render_each(renderer, chunk, data.on_bad_row, ledger):
                fitted = fit(made, data.max_length, data.on_overlong, ledger, place_id=renderer.place_id)
                sizes.append(len(fitted))
                rows += fitted
        return Part(
            table=table_of(rows), ledger=ledger, num_records=num, seen=Seen.joined(seen, ()) if seen else NOTHING,
            prompts=np.array(prompts, np.uint64), sizes=np.array(sizes if splits else (), np.int64),
        )  # fmt: skip


def _seen(records: Sequence[Record]) -> list[Seen]:
    """How the files of the records' pictures are now, before they are read."""
    sources = [source for record in records for source in pictures_of(record)]
    return [Seen.now(sources, ())] if sources else []


class _Growing:
    """Numbers that come some at a time."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._parts: list[NDArray[Any]] = [np.zeros(0, dtype)]

    def add(self, part: NDArray[Any]) -> None:
        self._parts.append(part)

    def all(self) -> NDArray[Any]:
        return np.concatenate(self._parts)
