"""A task with its records read: done once, then measured for every model."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from whet.config.evaluate import JudgementTask, PerplexityTask, Task
from whet.data.ledger import Ledger
from whet.data.picture_check import with_sound_pictures
from whet.data.sources import read_records
from whet.errors import DataError
from whet.runs.tasks import numbered
from whet.schema.records import Conversation, Origin, Prompt, Rating, Record, RecordKind
from whet.stages.measure.asked import check_task


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyTask:
    """A task, its name in tables, and what it is measured on."""

    name: str
    task: Task
    prompts: tuple[Prompt, ...] = ()
    keys: tuple[str, ...] = ()
    """One name per prompt (judgement: per answer), unique within the task."""
    conversations: tuple[Conversation, ...] = ()
    """Perplexity only."""
    ratings: tuple[Rating, ...] = ()
    """Judgement only."""
    ledger: Ledger

    def logged(self, num: int) -> list[int]:
        """Which prompts are kept for reading: drawn once per task, so every model shows its answer to the same ones."""
        return sorted(random.Random(0).sample(range(len(self.prompts)), min(num, len(self.prompts))))


def ready_tasks(tasks: Sequence[Task], *, folders: Mapping[str, Path]) -> list[ReadyTask]:
    """Read the records of all tasks. A name that repeats gets a number."""
    names = numbered([task.name or task.type for task in tasks])
    return [ready_task(task, folders=folders, name=name) for task, name in zip(tasks, names, strict=True)]


def ready_task(task: Task, *, folders: Mapping[str, Path], name: str | None = None) -> ReadyTask:
    """Read the records of one task. Raises DataError where fewer than two are left: one item has no interval."""
    name = name or task.name or task.type
    check_task(task, name)
    if isinstance(task, PerplexityTask):
        records, ledger = _read(task, "conversation", folders)
        conversations = tuple(record for record in records if isinstance(record, Conversation))
        kept = ReadyTask(name=name, task=task, conversations=conversations, ledger=ledger)
    elif isinstance(task, JudgementTask):
        records, ledger = _read(task, "rating", folders)
        ratings = tuple(record for record in records if isinstance(record, Rating))
        places = _keys([rating.origin for rating in ratings])
        kept = ReadyTask(name=name, task=task, ratings=ratings, keys=places, ledger=ledger)
    else:
        records, ledger = _read(task, "prompt", folders)
        prompts = tuple(record for record in records if isinstance(record, Prompt))
        keys = _keys([prompt.origin for prompt in prompts])
        kept = ReadyTask(name=name, task=task, prompts=prompts, keys=keys, ledger=ledger)
    if len(records) < 2:
        found = f"{len(records)} in {', '.join(map(str, task.data.files)) or 'no file'}"
        raise DataError("an evaluation needs at least 2 records", field=f"tasks.{name}.data.files", found=found)
    return kept


def _read(task: Task, kind: RecordKind, folders: Mapping[str, Path]) -> tuple[list[Record], Ledger]:
    """The task's records. Pictures that cannot be read are found now, before any model answers."""
    records, ledger = read_records(task.data, (kind,), folders=folders)
    return with_sound_pictures(records, task.data.on_bad_row, ledger), ledger


def _keys(origins: Sequence[Origin]) -> tuple[str, ...]:
    """`FILE:LINE`, with a number behind it where two records share a place (one row may hold several)."""
    seen: Counter[str] = Counter()
    keys = []
    for origin in origins:
        place = str(origin)
        seen[place] += 1
        keys.append(place if seen[place] == 1 else f"{place}~{seen[place]}")
    return tuple(keys)
