"""Log-probs of the reference policy on a fixed data set: measured when a row is first met, kept for every epoch after.

The reference never changes, so one pass over the data is all it costs. What has been measured lies in the stage folder
under a hash of the rows, the reference and the arithmetic; a run that is killed goes on with it. Once every row is
known a second model has nothing more to say, and its memory is given back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from whet.data.batch import GroupBatch
from whet.models.reference import Scores
from whet.objectives.sums import row_sums
from whet.runs.files import read_json, write_json, writing

Reference = Callable[[GroupBatch], Tensor]
"""Summed reference log-prob of every response of a batch, [R] float32 on the batch's device."""


def reference_key(rows: str, model: str, dtype: torch.dtype) -> str:
    """Hash of the rows' key, the reference model's content and the arithmetic."""
    return hashlib.sha256(json.dumps([rows, model, str(dtype)]).encode()).hexdigest()


class ReferenceCache:
    """[num_rows, columns] float32 on disk, NaN where nothing has been measured; written in place as training goes on.

    A number is written once and whole (four bytes), so a kill leaves nothing torn.
    """

    def __init__(self, path: Path, key: str, shape: tuple[int, int], *, create: bool = True) -> None:
        """Opens the file at `path`; with `create`, makes a new one where it is absent or was made from something else.
        Of several ranks one creates, the others open after it."""
        described = path.with_suffix(".json")
        known = {"key": key, "shape": list(shape)}
        if create and not (path.exists() and described.exists() and read_json(described) == known):
            temporary = path.with_name(f".{path.name}.tmp")
            with writing(path):
                np.full(shape, np.nan, dtype=np.float32).tofile(temporary)
                described.unlink(missing_ok=True)
                temporary.replace(path)
            write_json(described, known)
        self._numbers = np.memmap(path, dtype=np.float32, mode="r+", shape=shape)
        self._known: dict[int, int] = {}
        """Column that was read from -> how many of the first rows are known there."""

    def read(self, rows: Sequence[int], column: int, widths: Sequence[int]) -> Tensor:
        """The first `widths[i]` numbers from `column` on of each row, one after the other."""
        self._known.setdefault(column, 0)
        parts = [self._numbers[row, column : column + width] for row, width in zip(rows, widths, strict=True)]
        return torch.from_numpy(np.concatenate(parts))

    def write(self, rows: Sequence[int], column: int, widths: Sequence[int], numbers: Tensor) -> None:
        place = 0
        for row, width in zip(rows, widths, strict=True):
            self._numbers[row, column : column + width] = numbers[place : place + width].numpy()
            place += width

    def complete(self) -> bool:
        """Whether every row is known, by whichever rank, in each column that was ever read from."""
        return all(self._complete(column) for column in self._known)

    def _complete(self, column: int) -> bool:
        # What is known stays known, so no row is looked at twice.
        place, num = self._known[column], len(self._numbers)
        while place < num and not np.isnan(self._numbers[place, column]):
            place += 1
        self._known[column] = place
        return place == num


def measured(score: Scores) -> Reference:
    """The reference asked anew for every batch."""

    def reference(batch: GroupBatch) -> Tensor:
        return row_sums(score(batch.packed), batch.packed.target_rows, batch.packed.num_rows)

    return reference


def cached(
    measure: Reference, cache: ReferenceCache, *, column: int = 0, release: Callable[[], None] = lambda: None
) -> Reference:
    """The reference asked only for batches with a row that it was never asked for.

    `column` is where a row's numbers begin: KTO keeps two, of its own response and of the mismatched one. `release` is
    called whenever nothing is left to measure.
    """

    def reference(batch: GroupBatch) -> Tensor:
        widths = batch.groups.bincount(minlength=batch.num_samples).tolist()
        known = cache.read(batch.indices, column, widths)
        if known.isnan().any():
            # Known numbers are kept as they are: the same row has the same number whatever it is batched with.
            new = measure(batch).float().cpu()
            known = torch.where(known.isnan(), new, known)
            cache.write(batch.indices, column, widths, known)
        if cache.complete():
            release()
        return known.to(batch.lengths.device)

    return reference
