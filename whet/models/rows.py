"""Rows of trees: packed rows made of ids alone, and where each row's tokens stand in a packed one."""

from __future__ import annotations

import torch
from torch import Tensor

from whet.schema.packed import Packed, Tree
from whet.schema.pictures import Media


def from_trees(ids: Tensor, trees: tuple[Tree, ...], media: Media | None = None) -> Packed:
    """A packed row of these ids [T] whose every token but a row's first is a target."""
    positions: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    ends: list[int] = []
    row = 0
    for tree in trees:
        positions += range(tree.prompt)
        paths = [range(start, start + size) for start, size in tree.spans()] or [
            range(tree.start + 1, tree.start + tree.prompt)
        ]
        for path in paths:
            if tree.branches:
                positions += range(tree.prompt, tree.prompt + len(path))
            last = tree.start + tree.prompt - 1 if tree.branches else tree.start
            sources += [last, *path][: len(path)]
            targets += path
            rows += [row] * len(path)
            ends.append([last, *path][-1])
            row += 1

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=ids.device)

    return Packed(
        input_ids=ids, position_ids=tensor(positions), trees=trees, sources=tensor(sources),
        targets=ids[tensor(targets)], target_rows=tensor(rows), ends=tensor(ends), media=media,
    )  # fmt: skip


def row_places(trees: tuple[Tree, ...]) -> Tensor:
    """[R, L] positions of each row's tokens in the packed row, -1 where the row is shorter than the longest."""
    paths = []
    for tree in trees:
        prompt = [*range(tree.start, tree.start + tree.prompt)]
        paths += [[*prompt, *range(start, start + size)] for start, size in tree.spans()] or [prompt]
    longest = max(len(path) for path in paths)
    return torch.tensor([path + [-1] * (longest - len(path)) for path in paths])
