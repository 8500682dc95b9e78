"""From the plan's files to rows ready for training, with an account of every record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from whet.config.objective import Margin
from whet.config.stage import (
    DpoStage,
    KtoStage,
    OfflineStage,
    RewardStage,
    RewardWeightedStage,
    SftStage,
    SoftPreferenceStage,
)
from whet.data.marked import token_pieces
from whet.data.pictures import PictureReader
from whet.data.render import Rendered, RenderedGroup, Renderer
from whet.data.store import Tokenised
from whet.data.table import TokenRows
from whet.data.tokenise import tokenise
from whet.errors import DataError
from whet.runs.files import write_json, write_jsonl
from whet.schema.records import RecordKind
from whet.stages.context import Context
from whet.stages.rendering import reader_of

SHOWN = 3
"""Rows with pictures that are kept to look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rendered rows: `num_train` to train on, then those held out."""

    table: TokenRows
    num_train: int
    lengths: NDArray[np.int64]
    """[len(rows)] tokens of each row, a prompt counted once."""
    digest: str
    """Hash of the token ids of all rows, for what is computed from them once."""
    formats: frozenset[str]
    """The formats the files were read as."""
    reader: PictureReader | None = None
    """Loads the rows' pictures."""

    @property
    def rows(self) -> Sequence[Any]:
        """`Rendered` for SFT, `RenderedGroup` for all else; made when asked for."""
        return self.table

    @property
    def num_held_out(self) -> int:
        return len(self.rows) - self.num_train


def record_kinds(stage: OfflineStage) -> tuple[RecordKind, ...]:
    """The kinds of record a stage trains on."""
    match stage:
        case SftStage():
            return ("conversation",)
        case DpoStage():
            return ("preference",)
        case KtoStage():
            return ("rating",)
        case RewardStage():
            return ("preference", "ranking")
        case RewardWeightedStage() | SoftPreferenceStage():
            return ("scored",)


def read_rows(stage: OfflineStage, context: Context, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """Read, split, render and fit the stage's records, or find them in the token cache; writes data.json.

    Raises DataError where nothing is left to train on.
    """
    margin: Margin = stage.objective.margin if isinstance(stage, RewardStage) else "none"
    reader = reader_of(context.start.path, context.model)
    renderer = Renderer(tokenizer, system=stage.data.system, reader=reader, margin=margin)
    made = tokenise(stage.data, record_kinds(stage), renderer, folders=context.folders)
    if context.ranks.is_main:
        write_json(context.paths.data, made.account)
        write_shown(renderer, made, context)
    held_out = len(made.rows) - made.num_train
    text = f"{stage.name}: {made.summary}; {made.num_train} rows to train on, {held_out} held out"
    print(f"{text}; {len(made.rows):,} rows from the token cache" if made.cached else text)
    if not made.num_train:
        raise DataError(
            "no rows left to train on", field="data.files", found=made.summary, fix=f"see {context.paths.data}"
        )
    return Rows(
        table=made.rows, num_train=made.num_train, lengths=made.rows.lengths, digest=made.rows.digest,
        formats=frozenset(made.account["formats"].values()), reader=renderer.reader,
    )  # fmt: skip


def write_shown(renderer: Renderer, made: Tokenised, context: Context) -> None:
    """The first rows with pictures, for the report to show where these stand."""
    if made.rows.with_pictures:
        rows = [made.rows[place] for place in made.rows.with_pictures[:SHOWN]]
        write_jsonl(context.paths.pictures, [_shown(renderer, row) for row in rows])


def _shown(renderer: Renderer, row: Rendered | RenderedGroup) -> dict[str, Any]:
    match row:
        case Rendered():
            pieces = token_pieces(renderer, row.ids, row.weights, row.pictures)
        case RenderedGroup():
            pieces = token_pieces(renderer, row.prompt_ids, [0.0] * len(row.prompt_ids), row.pictures)
            for ids in row.response_ids:
                pieces += token_pieces(renderer, ids, [1.0] * len(ids), ())
    return {"origin": str(row.origin), "pieces": [asdict(piece) for piece in pieces]}
