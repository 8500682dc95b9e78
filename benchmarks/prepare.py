"""Makes what all sides train on: the checkpoint, and the rows as token ids in the order of the steps.

    python -m benchmarks.prepare WORK SIZE JOB.json      in a process of its own: it needs torch, and memory

whet reads the files itself, by its own plan. The peer is handed the ids of the very same rows, rendered by whet and cut
at `max_length`, in the order in which whet's feed visits them; so no tokenisation is timed on the peer's side.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import vision
from benchmarks.job import Job, Task, Training, read_job
from benchmarks.shapes import SHAPES, build_model
from whet.config.data import Data
from whet.data.ledger import Ledger
from whet.data.pictures import picture_reader
from whet.data.render import Renderer, fit, render_records
from whet.data.rendered import Rendered, RenderedGroup
from whet.data.sources import read_records
from whet.data.tokens import load_tokenizer, texts_of
from whet.errors import DataError, UserError
from whet.models.tiny import train_tokenizer
from whet.schema.records import Record, RecordKind

MAX_VOCABULARY = 32_768
"""Entries of the tokenizer, where the texts offer as many."""
IGNORED = -100
"""Label of a token that is not trained, in every peer."""


def prepare(training: Training, size: str) -> None:
    """Build `training.model` unless it is there, and write `training.rows`. Raises DataError where rows are too few."""
    records = read(training)
    folder, shape = Path(training.model), SHAPES[size]
    if not folder.is_dir():
        texts = [text for record in records for text in words_of(record)]
        if training.pictures:
            vision.build_model(shape, texts, folder)
        else:
            room = min(MAX_VOCABULARY, shape.vocabulary)
            tokenizer = train_tokenizer(texts, vocab_size=room, max_positions=training.max_length)
            build_model(shape, tokenizer, folder, device=training.device)
    order = visited(rendered(records, training), training)
    rows: list[dict[str, Any]] = [as_ids(training.task, row) for row in order]
    if training.pictures:
        by_line = {record.origin.line: record for record in records}
        words = load_tokenizer(training.model)
        rows = [ids | vision.as_asked(by_line[row.origin.line], words) for ids, row in zip(rows, order, strict=True)]
    Path(training.rows).write_text(json.dumps(rows), encoding="utf-8")


def read(training: Training) -> list[Record]:
    kind: RecordKind = "conversation" if training.task == "sft" else "preference"
    records, _ = read_records(Data(files=training.data, on_bad_row="drop"), (kind,))
    return records


def words_of(record: Record) -> list[str]:
    messages, answers = texts_of(record)
    return [*(message.text for message in messages), *answers]


def rendered(records: Sequence[Record], training: Training) -> list[Rendered | RenderedGroup]:
    """The rows as a stage of whet makes them."""
    ledger = Ledger()
    renderer = Renderer(load_tokenizer(training.model), reader=picture_reader(training.model))
    rows: Any = render_records(renderer, records, "drop", ledger)
    fitted: list[Rendered | RenderedGroup] = fit(rows, training.max_length, "truncate", ledger)
    return fitted


def visited(rows: Sequence[Rendered | RenderedGroup], training: Training) -> list[Rendered | RenderedGroup]:
    """The rows of all steps in order: whet's feed visits an epoch by a permutation of (seed, epoch).

    No row comes twice: a cached reference would make the second visit cheaper.
    """
    needed = training.steps * training.batch_size
    if len(rows) < needed:
        raise DataError(
            f"{needed} rows are needed for {training.steps} steps", field="--data", found=f"{len(rows)} rows",
            fix="take fewer steps, or a longer file",
        )  # fmt: skip
    order = np.random.Generator(np.random.PCG64([training.seed, 0])).permutation(len(rows))
    return [rows[i] for i in order[:needed]]


def as_ids(task: Task, row: Rendered | RenderedGroup) -> dict[str, list[int]]:
    """A row in plain lists: ids and labels for sft, else a prompt and its two responses."""
    match row:
        case Rendered():
            if set(row.weights) - {0.0, 1.0}:
                raise DataError("a weighted turn", file=row.origin.file, line=row.origin.line, fix="peers know none")
            labels = [token if weight else IGNORED for token, weight in zip(row.ids, row.weights, strict=True)]
            return {"ids": list(row.ids), "labels": labels}
        case RenderedGroup():
            chosen, rejected = row.response_ids
            return {"prompt": list(row.prompt_ids), "chosen": list(chosen), "rejected": list(rejected)}


def main(job_file: str, size: str) -> int:
    job: Job = read_job(Path(job_file))
    try:
        prepare(job.training, size)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
