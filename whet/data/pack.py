"""Rendered rows -> packed rows: nothing padded, a prompt once for all its responses.

    fill([5, 9, 2, 7], 10) -> [[1], [3, 2], [0]]          first fit decreasing: rows of 9, 7 + 2 and 5 tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from whet.data.rendered import Rendered, RenderedGroup
from whet.schema.packed import Packed, Tree
from whet.schema.pictures import Media, Picture

if TYPE_CHECKING:
    from whet.data.pictures import PictureReader


def fill(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Positions of `sizes` in bins of at most `capacity`, by first fit decreasing; a larger one has a bin of its own.

    First fit decreasing needs at most 11/9 of the bins of the best packing, and one more (Dosa 2007).
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for place in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        size = sizes[place]
        number = next((n for n, left in enumerate(room) if size <= left), None)
        if number is None:
            bins.append([place])
            room.append(capacity - size)
        else:
            bins[number].append(place)
            room[number] -= size
    return bins


def pack_rows(rows: Sequence[Rendered], reader: PictureReader | None = None) -> tuple[Packed, Tensor]:
    """Conversations end to end, and the weight [N] float32 of each trained token.

    The first token of a row has nothing before it and is never a target. `reader` loads the rows' pictures.
    """
    trees, sources, targets, weights = [], [], [], []
    start = 0
    for row in rows:
        length = len(row.ids)
        trees.append(Tree(start, length))
        weight = np.asarray(row.weights, dtype=np.float32)
        places = 1 + np.flatnonzero(weight[1:])
        sources.append(start + places - 1)
        targets.append(np.asarray(row.ids)[places])
        weights.append(weight[places])
        start += length
    packed = Packed(
        input_ids=_joined([np.asarray(row.ids) for row in rows]),
        position_ids=_joined([np.arange(tree.prompt) for tree in trees]),
        trees=tuple(trees),
        sources=_joined(sources),
        targets=_joined(targets),
        target_rows=_joined([np.full(len(t), n) for n, t in enumerate(targets)]),
        ends=torch.tensor([tree.start + tree.prompt - 1 for tree in trees]),
        media=media_of(trees, [(row.ids, row.pictures) for row in rows], reader),
    )
    return packed, torch.from_numpy(np.concatenate(weights))


def pack_groups(groups: Sequence[RenderedGroup], reader: PictureReader | None = None) -> Packed:
    """Prompts with all their responses behind them; every response token is a target.

    `reader` loads the pictures of the prompts.
    """
    trees, ids, positions, sources, ends, lengths = [], [], [], [], [], []
    start = 0
    for group in groups:
        prompt = len(group.prompt_ids)
        tree = Tree(start, prompt, tuple(len(response) for response in group.response_ids))
        trees.append(tree)
        ids += [np.asarray(group.prompt_ids), *(np.asarray(response) for response in group.response_ids)]
        positions += [np.arange(prompt), *(np.arange(prompt, prompt + size) for size in tree.branches)]
        for first, size in tree.spans():
            # The prompt's last token predicts the first of every response.
            sources.append(np.concatenate([[start + prompt - 1], np.arange(first, first + size - 1)]))
            ends.append(first + size - 1)
            lengths.append(size)
        start += tree.num_tokens
    return Packed(
        input_ids=_joined(ids),
        position_ids=_joined(positions),
        trees=tuple(trees),
        sources=_joined(sources),
        targets=_joined([np.asarray(response) for group in groups for response in group.response_ids]),
        target_rows=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        ends=torch.tensor(ends),
        media=media_of(trees, [(group.prompt_ids, group.pictures) for group in groups], reader),
    )


def media_of(
    trees: Sequence[Tree], shown: Sequence[tuple[Sequence[int], tuple[Picture, ...]]], reader: PictureReader | None
) -> Media | None:
    """The pictures of a packed row, None where it has none; `shown` are ids and pictures of each tree's prompt.

    What a response says is never a picture, even where a model has drawn the placeholder.
    """
    if not any(pictures for _, pictures in shown):
        return None
    assert reader is not None, "rows with pictures come with their reader"
    places = []
    for tree, (ids, pictures) in zip(trees, shown, strict=True):
        found = np.flatnonzero(np.asarray(ids) == reader.place_id) if pictures else np.zeros(0, dtype=np.int64)
        assert len(found) == sum(picture.num_tokens for picture in pictures), "a placeholder for every token"
        places.append(tree.start + found)
    return Media(
        pictures=tuple(picture for _, pictures in shown for picture in pictures),
        places=_joined(places),
        load=reader.load,
    )


def _joined(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
