"""From the plan's files to rendered rows, with an account of every row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from whet.config.stage import DpoStage, SftStage
from whet.data.ledger import Ledger
from whet.data.render import Renderer, fit
from whet.data.sources import read_records, split_records
from whet.errors import DataError
from whet.runs.files import write_json
from whet.schema.records import Record
from whet.stages.context import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rendered rows: `num_train` to train on, then those held out."""

    rows: list[Any]
    """`Rendered` for SFT, `RenderedPair` for preferences."""
    num_train: int


def read_rows(stage: SftStage | DpoStage, context: Context, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """Read, split, render and fit the stage's records; writes the data ledger to data.json."""
    data = stage.data
    renderer = Renderer(tokenizer, system=data.system)
    match stage:
        case SftStage():
            kind, render = "conversation", renderer.conversation
        case DpoStage():
            kind, render = "preference", renderer.preference
    records, ledger = read_records(data, (kind,), folders=context.folders)
    held_out: list[Record] = []
    held_ledger = Ledger()
    if data.eval_files:
        held_out, held_ledger = read_records(data, (kind,), folders=context.folders, files=data.eval_files)
    elif data.eval_fraction:
        records, held_out = split_records(records, data.eval_fraction, data.seed)
    return Rows(rows=[], num_train=0)
