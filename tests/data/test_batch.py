"""What a batch is made of, beyond packing."""

from __future__ import annotations

import torch

from whet.data.batch import RatingBatch, collate_ratings
from whet.data.rendered import RenderedGroup

CPU = torch.device("cpu")
ROWS = [
    RenderedGroup(prompt_ids=range(100, 100 + prompt), response_ids=(range(200, 200 + response),), values=(1.0,))
    for prompt, response in ((7, 1), (2, 6), (1, 3))
]
"""None longer than 8 tokens."""


def ratings(max_length: int) -> RatingBatch:
    return collate_ratings(ROWS, [*ROWS[1:], ROWS[0]], range(3), max_length=max_length, device=CPU)


def test_a_borrowed_response_is_cut_to_the_longest_row_allowed() -> None:
    """7 + 6, 2 + 3 and 1 + 1 tokens: only the first is too long for 8, and keeps one token of its six."""
    batch = ratings(8)
    assert batch.mismatched.lengths.tolist() == [1, 3, 1]
    trees = batch.mismatched.packed.trees
    assert [tree.prompt + sum(tree.branches) for tree in trees] == [8, 5, 2]
    assert batch.mismatched.packed.targets.tolist() == [200, 200, 201, 202, 200]
    assert batch.rated.lengths.tolist() == [1, 6, 3]
    assert batch.mismatched.indices == batch.rated.indices == (0, 1, 2)


def test_where_there_is_room_it_stays_whole() -> None:
    assert ratings(13).mismatched.lengths.tolist() == [6, 3, 1]
