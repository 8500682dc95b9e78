"""Reference log-probs are measured once for every row, and found again after a kill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from whet.data.batch import GroupBatch, collate_groups
from whet.data.rendered import RenderedGroup
from whet.train.reference import ReferenceCache, cached, reference_key

ROWS = [
    RenderedGroup(prompt_ids=(1, 2), response_ids=tuple((3,) * size for size in sizes))
    for sizes in ((1, 2), (3, 1, 2), (2,), (1, 1))
]


def batch(*indices: int) -> GroupBatch:
    return collate_groups([ROWS[i] for i in indices], indices, device=torch.device("cpu"))


class Measure:
    """Row i's k-th response has log-prob -(10 i + k); counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, rows: GroupBatch) -> torch.Tensor:
        self.asked.append(rows.indices)
        return torch.tensor([-(10.0 * i + k) for i in rows.indices for k in range(len(ROWS[i].response_ids))])


def open_cache(path: Path, key: str = "k") -> ReferenceCache:
    return ReferenceCache(path / "reference.f32", key, (len(ROWS), 3))


def test_every_row_is_measured_once(tmp_path: Path) -> None:
    measure = Measure()
    reference = cached(measure, open_cache(tmp_path))
    assert reference(batch(1, 0)).tolist() == [-10, -11, -12, 0, -1]
    assert reference(batch(0, 2)).tolist() == [0, -1, -20]
    assert reference(batch(2, 1)).tolist() == [-20, -10, -11, -12]
    assert measure.asked == [(1, 0), (0, 2)]


def test_another_process_finds_what_was_measured(tmp_path: Path) -> None:
    cached(Measure(), open_cache(tmp_path))(batch(0, 3))
    again = Measure()
    assert cached(again, open_cache(tmp_path))(batch(3, 0)).tolist() == [-30, -31, 0, -1]
    assert again.asked == []


@pytest.mark.parametrize("change", ["key", "shape"])
def test_numbers_of_something_else_are_not_used(tmp_path: Path, change: str) -> None:
    cached(Measure(), open_cache(tmp_path))(batch(0))
    if change == "key":
        other = open_cache(tmp_path, "other")
    else:
        other = ReferenceCache(tmp_path / "reference.f32", "k", (len(ROWS), 4))
    measure = Measure()
    cached(measure, other)(batch(0))
    assert measure.asked == [(0,)]


def test_columns_are_kept_apart(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    own, stranger = cached(Measure(), cache, column=0), cached(lambda b: torch.tensor([-5.0]), cache, column=1)
    assert (own(batch(2)).tolist(), stranger(batch(2)).tolist()) == ([-20], [-5])
    assert (own(batch(2)).tolist(), stranger(batch(2)).tolist()) == ([-20], [-5])
    numbers = np.fromfile(tmp_path / "reference.f32", dtype=np.float32).reshape(4, 3)
    assert numbers[2, :2].tolist() == [-20, -5] and np.isnan(numbers[[0, 1, 3]]).all()


def test_the_model_is_given_up_once_every_row_is_known(tmp_path: Path) -> None:
    """Rows of one to three responses; two ranks that share the file, each of which measures a part."""
    path, released = tmp_path, list[str]()
    one = cached(Measure(), open_cache(path), release=lambda: released.append("one"))
    other = cached(Measure(), open_cache(path), release=lambda: released.append("other"))
    one(batch(0, 1))
    other(batch(2))
    one(batch(1, 0))
    assert released == []
    other(batch(3))
    assert released == ["other"]
    one(batch(0))
    assert released == ["other", "one"]


def test_the_model_is_kept_while_a_column_that_is_read_has_gaps(tmp_path: Path) -> None:
    cache, released = open_cache(tmp_path), list[int]()
    own = cached(Measure(), cache, column=0, release=lambda: released.append(0))
    stranger = cached(
        lambda b: torch.full((b.num_samples,), -5.0), cache, column=2, release=lambda: released.append(2)
    )
    stranger(batch(2))
    own(batch(0, 1, 2, 3))
    assert released == []
    cache.write((0, 1, 3), 2, (1, 1, 1), torch.zeros(3))
    own(batch(0))
    assert released == [0]


def test_the_key_names_rows_model_and_arithmetic() -> None:
    key = reference_key("rows", "model", torch.float32)
    others = [("row", "model", torch.float32), ("rows", "base", torch.float32), ("rows", "model", torch.bfloat16)]
    assert len({key, *(reference_key(*other) for other in others)}) == 4
