"""From files to rows ready for training: read, split, rendered and fitted once, and found again by what they are of.

Large sets are rendered by several processes, one a core: the template is Python and would keep to one. They are forked,
so that they have the records and the tokenizer already, and send back arrays. They touch neither torch nor a device.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from whet.config.data import Data
from whet.data import store
from whet.data.keys import picture_folders, rows_key
from whet.data.ledger import Ledger
from whet.data.places import pictures_of
from whet.data.render import CHUNK, Renderer, fit, render_records
from whet.data.sources import read_records, split_records
from whet.data.store import Seen, Tokenised
from whet.data.table import Table, TokenRows, joined, table_of
from whet.schema.records import Record, RecordKind

WORTH_PROCESSES = 4096
"""Fewer records are rendered before other processes would have begun."""
MAX_PROCESSES = 8


def tokenise(
    data: Data, kinds: tuple[RecordKind, ...], renderer: Renderer, *, folders: Mapping[str, Path] = {}
) -> Tokenised:
    """The rows of `data.files`, then those held out; from the token cache where they were made before.

    They are made again where a picture's file is another than it was. Raises DataError where files or records cannot be
    used.
    """
    key = rows_key(data, kinds, renderer, folders)
    found = store.load(key, picture_folders(data, folders)) if key else None
    if found is not None:
        return found
    table, made, seen = _make(data, kinds, renderer, folders)
    # Files that were written to while they were read are not what the key says.
    if key is None or not made.num_train or rows_key(data, kinds, renderer, folders) != key:
        return made
    return store.save(key, table, made, seen)


def _make(
    data: Data, kinds: tuple[RecordKind, ...], renderer: Renderer, folders: Mapping[str, Path]
) -> tuple[Table, Tokenised, Seen]:
    records, ledger = read_records(data, kinds, folders=folders)
    held_out: list[Record] = []
    held_ledger = ledger
    if data.eval_files:
        held_out, held_ledger = read_records(data, kinds, folders=folders, files=data.eval_files)
    elif data.eval_fraction:
        records, held_out = split_records(records, data.eval_fraction, data.seed)
    sources = (source for record in chain(records, held_out) for source in pictures_of(record))
    seen = Seen.now(sources, picture_folders(data, folders))
    tables = list(rendered(renderer, records, data, ledger))
    num_train = sum(len(table.arrays.lines) for table in tables)
    tables += rendered(renderer, held_out, data, held_ledger)
    del records, held_out  # no longer needed where memory is at its peak
    table = joined(tables)
    rows = TokenRows(table)
    account = ledger.to_json() | {"rows": {"train": num_train, "eval": len(rows) - num_train}}
    if data.eval_files:
        account["eval"] = held_ledger.to_json()
    return table, Tokenised(rows=rows, num_train=num_train, account=account, summary=ledger.describe()), seen


def rendered(renderer: Renderer, records: Sequence[Record], data: Data, ledger: Ledger) -> Iterator[Table]:
    """The records, all of one kind, rendered and brought to `data.max_length`, some at a time."""
    job = Job(renderer=renderer, records=records, data=data)
    starts = range(0, len(records), CHUNK)
    processes = num_processes() if len(records) >= WORTH_PROCESSES else 1
    yield table_of(())
    for table, account in _forked(job, starts, processes) if processes > 1 else map(job.run, starts):
        ledger.merge(account)
        yield table


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Records to render, a chunk at a time."""

    renderer: Renderer
    records: Sequence[Record]
    data: Data

    def run(self, start: int) -> tuple[Table, Ledger]:
        """The rows of the chunk that begins there, and what rendering added to the account."""
        ledger, data = Ledger(), self.data
        rows = render_records(self.renderer, self.records[start : start + CHUNK], data.on_bad_row, ledger)
        fitted = fit(rows, data.max_length, data.on_overlong, ledger, place_id=self.renderer.place_id)
        return table_of(fitted), ledger


def num_processes() -> int:
    """How many to render with: one a core that this process may use. One where forking is not safe (macOS, Windows)."""
    return min(len(os.sched_getaffinity(0)), MAX_PROCESSES) if sys.platform == "linux" else 1


_job: Job | None = None
"""In a forked process, what it works on."""


def _forked(job: Job, starts: Sequence[int], processes: int) -> Iterator[tuple[Table, Ledger]]:
    """The chunks in order, a few of them ahead."""
    fork = multiprocessing.get_context("fork")
    waiting: deque[Future[tuple[Table, Ledger]]] = deque()
    with ProcessPoolExecutor(processes, mp_context=fork, initializer=_begin, initargs=(job,)) as pool:
        for start in starts:
            with _single_threaded():
                waiting.append(pool.submit(_run, start))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _begin(job: Job) -> None:
    """First thing in a forked process."""
    global _job
    _job = job
    gc.freeze()  # else the collector would write to, and so copy, every object that is shared with the parent
    gc.set_threshold(50_000)  # almost nothing made here is garbage in cycles
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends them


def _run(start: int) -> tuple[Table, Ledger]:
    assert _job is not None
    return _job.run(start)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Processes forked here tokenise with one thread each; those of the tokenizers library do not survive a fork."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
