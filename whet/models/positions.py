"""Rotary positions of rows with pictures, for models that place a picture in a grid (Qwen2-VL, 2409.12191).

    token    <start>  P P P  <end>  two  words          a picture of 2 rows and 3 columns, of 6 tokens
                      P P P
    time        0     1 1 1    4     5     6            all tokens of a picture stand at one moment,
                      1 1 1
    height      0     1 1 1    4     5     6            in their row,
                      2 2 2
    width       0     1 2 3    4     5     6            in their column,
                      1 2 3
                                                        and what follows begins behind the longer side

A branch goes on where its prompt has ended, so a picture in the prompt moves all branches alike.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from whet.schema.packed import Tree
from whet.schema.pictures import Media, Picture


def grid_positions(own: Tensor, trees: Sequence[Tree], media: Media) -> Tensor:
    """[3, T] positions in time, height and width, from each token's place in its own row, own [T]."""
    positions = own.repeat(3, 1)
    places, first = media.places.tolist(), 0
    starts = [tree.start for tree in trees]
    for picture in media.pictures:
        start, end = places[first], places[first] + picture.num_tokens
        assert places[first + picture.num_tokens - 1] == end - 1, "the tokens of a picture stand side by side"
        first += picture.num_tokens
        columns = _grid(picture)[1]
        tree = trees[bisect_right(starts, start) - 1]
        index = torch.arange(picture.num_tokens, device=own.device)
        positions[:, start:end] = positions[0, start].clone()
        positions[1, start:end] += index // columns
        positions[2, start:end] += index % columns
        positions[:, end : _last(tree, start)] += shift(picture)
    return positions


def shift(picture: Picture) -> int:
    """How much further back the text behind the picture stands than its tokens' number says; negative."""
    return max(_grid(picture)) - picture.num_tokens


def prompt_shifts(trees: Sequence[Tree], media: Media | None) -> tuple[int, ...]:
    """For each tree, how far the pictures of its prompt shift what follows it."""
    shifts = [0] * len(trees)
    if media is not None:
        starts, first = [tree.start for tree in trees], 0
        places = media.places.tolist()
        for picture in media.pictures:
            shifts[bisect_right(starts, places[first]) - 1] += shift(picture)
            first += picture.num_tokens
    return tuple(shifts)


def _grid(picture: Picture) -> tuple[int, int]:
    assert picture.grid is not None, "the model places pictures in a grid, and so does their processor"
    return picture.grid


def _last(tree: Tree, place: int) -> int:
    """Where the part of the tree ends that a picture at `place` shifts: its branch, or of a prompt all there is."""
    ends = [start + size for start, size in tree.spans() if start <= place < start + size]
    return ends[0] if ends else tree.start + tree.num_tokens
