"""How long a stage's rows are: rendered as the stage will render them, through the same token cache, or assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.config.data import Source
from whet.config.model import Model
from whet.config.stage import OfflineStage, OnlineStage
from whet.data.locate import locate
from whet.data.render import Renderer
from whet.data.sources import read_records, split_records
from whet.data.tokenise import tokenise
from whet.errors import DataError, ModelError
from whet.schema.artifacts import ModelRef
from whet.schema.records import Prompt
from whet.stages.rendering import renderer_of
from whet.stages.rows import record_kinds


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Of the rows a stage trains on; of the prompts, where it generates."""

    tokens: NDArray[np.int64]
    """[R] of each row. One row, of the longest length there may be, where they are assumed."""
    rows: Sequence[Any]
    """`Rendered` or `RenderedGroup`; empty where there are none to look at."""
    assumed: str = ""
    """Why they are assumed; empty where they are real."""


def lengths_of(stage: OfflineStage | OnlineStage, model: Model, *, max_length: int | None) -> Lengths:
    """Real lengths, or with `max_length` rows of so many tokens; where the data or the tokenizer is not there, rows of
    `data.max_length`.

    Raises DataError where there are files and they cannot be used.
    """
    if max_length is not None:
        return _assumed(max_length, f"rows of {max_length} tokens, as asked for")
    missing = _missing(stage)
    if missing is not None:
        return _assumed(stage.data.max_length, f"{missing} is not there yet: rows of data.max_length")
    try:
        renderer = renderer_of(ModelRef(path=model.path, adapter=model.adapter), model, system=stage.data.system)
    except ModelError:
        return _assumed(stage.data.max_length, "no tokenizer to count with: rows of data.max_length")
    if isinstance(stage, OnlineStage):
        return _prompts(stage, renderer)
    made = tokenise(stage.data, record_kinds(stage), renderer)
    if not made.num_train:
        raise DataError("no rows left to train on", field="data.files", found=made.summary)
    return Lengths(tokens=np.asarray(made.rows.lengths[: made.num_train]), rows=made.rows)


def _assumed(tokens: int, why: str) -> Lengths:
    return Lengths(tokens=np.array([tokens]), rows=(), assumed=why)


def _missing(stage: OfflineStage | OnlineStage) -> str | None:
    """The first file that an earlier stage has yet to write, or that is not on this disk."""
    nowhere: Mapping[str, Path] = {}
    for entry in stage.data.files:
        path = entry if isinstance(entry, str) else entry.path
        if path.startswith("@"):
            return path
        try:
            locate(Source(path=entry) if isinstance(entry, str) else entry, stage.data, nowhere)
        except DataError:
            return path
    return None


def _prompts(stage: OnlineStage, renderer: Renderer) -> Lengths:
    """Of the prompts; longer ones than `data.max_length` are dropped, as the stage will."""
    records, _ = read_records(stage.data, ("prompt",))
    if not stage.data.eval_files and stage.data.eval_fraction:
        records, _ = split_records(records, stage.data.eval_fraction, stage.data.seed)
    sizes = [
        len(renderer.prompt(record.messages, record.tools, origin=record.origin))
        for record in records
        if isinstance(record, Prompt)
    ]
    kept = [size for size in sizes if size <= stage.data.max_length]
    if not kept:
        raise DataError("no prompts left", field="data.files", found=f"{len(sizes)} prompts, all too long")
    return Lengths(tokens=np.array(kept), rows=())
