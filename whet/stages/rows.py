"""From the plan's files to rendered rows, with an account of every record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from whet.config.stage import DpoStage, SftStage
from whet.data.ledger import Ledger
from whet.data.render import Rendered, RenderedPair, Renderer, fit
from whet.data.sources import read_records, split_records
from whet.errors import DataError
from whet.runs.files import write_json
from whet.schema.records import Conversation, Preference, Record, RecordKind
from whet.stages.context import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rendered rows: `num_train` to train on, then those held out."""

    rows: list[Any]
    """`Rendered` for SFT, `RenderedPair` for preferences."""
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


def fit_records(
    renderer: Renderer, records: Iterable[Record], stage: SftStage | DpoStage, ledger: Ledger
) -> list[Rendered] | list[RenderedPair]:
    """Render the records of a stage and bring them to `data.max_length`."""
    data = stage.data
    match stage:
        case SftStage():
            rows = (row for record in of_type(Conversation, records) for row in renderer.conversations(record))
            return fit(rows, data.max_length, data.on_overlong, ledger)
        case DpoStage():
            pairs = (renderer.preference(record) for record in of_type(Preference, records))
            return fit(pairs, data.max_length, data.on_overlong, ledger)


def of_type(kind: type[Any], records: Iterable[Record]) -> Iterator[Any]:
    """The records, which `read_records` was asked to be of one kind; a type error here is a defect of whet."""
    for record in records:
        if not isinstance(record, kind):
            raise TypeError(f"expected a {kind.__name__}, got a {type(record).__name__}")
        yield record
