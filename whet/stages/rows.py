"""From the plan's files to rendered rows, with an account of every record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from whet.config.stage import DpoStage, SftStage
from whet.data.ledger import Ledger
from whet.data.render import Renderer, fit, render_records
from whet.data.sources import read_records, split_records
from whet.errors import DataError
from whet.runs.files import write_json
from whet.schema.records import Record, RecordKind
from whet.stages.context import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rendered rows: `num_train` to train on, then those held out."""

    rows: list[Any]
    """`Rendered` for SFT, `RenderedGroup` for preferences."""
    num_train: int

    @property
    def num_held_out(self) -> int:
        return len(self.rows) - self.num_train


def read_rows(stage: SftStage | DpoStage, context: Context, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """Read, split, render and fit the stage's records; writes the data ledger to data.json.

    Raises DataError where nothing is left to train on.
    """
    data = stage.data
    kind: RecordKind = "conversation" if isinstance(stage, SftStage) else "preference"
    records, ledger = read_records(data, (kind,), folders=context.folders)
    held_out: list[Record] = []
    held_ledger = ledger
    if data.eval_files:
        held_out, held_ledger = read_records(data, (kind,), folders=context.folders, files=data.eval_files)
    elif data.eval_fraction:
        records, held_out = split_records(records, data.eval_fraction, data.seed)
    renderer = Renderer(tokenizer, system=data.system)
    train = fit_records(renderer, records, stage, ledger)
    held = fit_records(renderer, held_out, stage, held_ledger)
    account = ledger.to_json() | {"rows": {"train": len(train), "eval": len(held)}}
    if data.eval_files:
        account["eval"] = held_ledger.to_json()
    write_json(context.paths.data, account)
    print(f"{stage.name}: {ledger.describe()}; {len(train)} rows to train on, {len(held)} held out")
    if not train:
        raise DataError(
            "no rows left to train on", field="data.files", found=ledger.describe(), fix=f"see {context.paths.data}"
        )
    return Rows(rows=[*train, *held], num_train=len(train))


def fit_records(renderer: Renderer, records: Sequence[Record], stage: SftStage | DpoStage, ledger: Ledger) -> list[Any]:
    """The stage's records, all of one kind, rendered and brought to `data.max_length`."""
    data = stage.data
    rows: Iterator[Any] = render_records(renderer, records, data.on_bad_row, ledger)
    return fit(rows, data.max_length, data.on_overlong, ledger)
