"""Packed rows, written out by hand; and first fit decreasing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from whet.data.batch import collate_rankings
from whet.data.pack import fill, pack_groups, pack_rows
from whet.data.rendered import Rendered, RenderedGroup
from whet.schema.packed import Tree


def test_groups_hold_a_prompt_once() -> None:
    packed = pack_groups([
        RenderedGroup(prompt_ids=(10, 11, 12), response_ids=((20, 21), (30,))),
        RenderedGroup(prompt_ids=(13,), response_ids=((40, 41, 42),)),
    ])  # fmt: skip
    assert packed.input_ids.tolist() == [10, 11, 12, 20, 21, 30, 13, 40, 41, 42]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2, 3]
    assert packed.trees == (Tree(0, 3, (2, 1)), Tree(6, 1, (3,)))
    assert packed.sources.tolist() == [2, 3, 2, 6, 7, 8]
    assert packed.targets.tolist() == [20, 21, 30, 40, 41, 42]
    assert packed.target_rows.tolist() == [0, 0, 1, 2, 2, 2]
    assert packed.ends.tolist() == [4, 5, 9]
    assert (packed.num_tokens, packed.num_rows) == (10, 3)


def test_conversations_train_weighted_tokens_and_never_the_first() -> None:
    packed, weights = pack_rows([
        Rendered(ids=(1, 2, 3, 4), weights=(1.0, 0.0, 0.5, 1.0)),
        Rendered(ids=(5, 6), weights=(0.0, 0.0)),
        Rendered(ids=(7, 8), weights=(0.0, 2.0)),
    ])  # fmt: skip
    assert packed.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 0, 1]
    assert packed.sources.tolist() == [1, 2, 6]
    assert packed.targets.tolist() == [3, 4, 8]
    assert packed.target_rows.tolist() == [0, 0, 2]
    assert packed.ends.tolist() == [3, 5, 7]
    assert weights.tolist() == [0.5, 1.0, 2.0] and weights.dtype == torch.float32


def test_fill_by_hand() -> None:
    assert fill([5, 9, 2, 7], 10) == [[1], [3, 2], [0]]
    assert fill([11, 3], 10) == [[0], [1]]
    assert fill([], 10) == []


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 30))
def test_fill_uses_every_row_once_and_keeps_to_its_bound(sizes: list[int], capacity: int) -> None:
    bins = fill(sizes, capacity)
    assert sorted(i for one in bins for i in one) == list(range(len(sizes)))
    assert all(len(one) == 1 or sum(sizes[i] for i in one) <= capacity for one in bins)
    fitting = sum(size for size in sizes if size <= capacity)
    larger = sum(size > capacity for size in sizes)
    # No two bins could be one: at most one of them is half empty.
    assert len(bins) - larger <= max(1, -(-2 * fitting // capacity))


@pytest.mark.parametrize(
    ("values", "ranks", "margins"),
    [((), [1, 2], [0, 0]), ((2.5, 0.0), [1, 2], [2.5, 0]), ((2.0, 1.0), [2, 1], [0, 0]), ((1.0, 1.0), [1, 1], [0, 0])],
)
def test_preferences_and_rankings_become_ranks(values, ranks, margins) -> None:
    row = RenderedGroup(prompt_ids=(1,), response_ids=((2,), (3,)), values=values)
    batch = collate_rankings([row], device=torch.device("cpu"))
    assert (batch.ranks.tolist(), batch.margins.tolist()) == (ranks, margins)
