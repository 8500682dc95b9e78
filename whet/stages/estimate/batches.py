"""The largest micro-batches of a stage: those that its own feed will make of its own rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from whet.config.stage import OfflineStage, OnlineDpoStage, OnlineStage
from whet.data.rendered import Rendered, RenderedGroup
from whet.estimate.setting import MicroBatch
from whet.models.memory import Budget
from whet.models.tree_attention import segments_of
from whet.schema.packed import Tree
from whet.stages.estimate.lengths import Lengths
from whet.train.feed import OfflineFeed

MOST_STEPS = 20_000
"""Steps that are looked at; a longer training's micro-batches are as large as these."""


def offline_batches(
    stage: OfflineStage, lengths: Lengths, budget: Budget, *, recompute: bool, ranks: int
) -> tuple[MicroBatch, ...]:
    """The largest that keeps its activations, and the largest that computes them again, where there are such."""
    limit = 0 if recompute else budget.kept
    if lengths.assumed:
        row = int(lengths.tokens[0])
        size = max(row, row * min(stage.train.batch_size, budget.packed // row))
        return (_of_length(size, row, recompute=size > limit),)
    found: dict[bool, Sequence[int]] = {}
    for part in _parts(stage, lengths, budget, ranks):
        size = int(lengths.tokens[part].sum())
        known = found.get(size > limit)
        if known is None or size > int(lengths.tokens[known].sum()):
            found[size > limit] = part
    return tuple(_of_rows([lengths.rows[i] for i in part], recompute=again) for again, part in found.items())


def _parts(stage: OfflineStage, lengths: Lengths, budget: Budget, ranks: int) -> Iterator[list[int]]:
    """The micro-batches of all ranks, step by step, as places in the data."""
    train = stage.train
    for rank in range(min(ranks, train.batch_size)):
        feed = OfflineFeed(
            lengths.tokens, list, batch_size=train.batch_size, micro_batch_tokens=budget.packed, epochs=train.epochs,
            max_steps=train.max_steps, seed=train.seed, rank=rank, world=ranks,
        )  # fmt: skip
        for step in range(min(feed.num_steps, MOST_STEPS)):
            yield from feed.micro_batches(step)


def online_batch(stage: OnlineStage, lengths: Lengths, budget: Budget, *, recompute: bool, ranks: int) -> MicroBatch:
    """Of the longest prompts, with answers as long as they may be: how long they will be nobody knows."""
    prompt, answer = int(lengths.tokens.max()), stage.rollout.max_new_tokens
    pair = isinstance(stage, OnlineDpoStage)
    size = 2 if pair else stage.rollout.group_size
    minibatches = 1 if isinstance(stage, OnlineDpoStage) else stage.objective.minibatches
    prompts = max(1, math.ceil(stage.train.batch_size / ranks / minibatches))
    tree = prompt + size * answer
    trees = max(1, min(prompts, budget.packed // tree))
    tokens = trees * tree
    return MicroBatch(
        tokens=tokens,
        targets=trees * size * answer,
        recompute=tokens > (0 if recompute else budget.kept),
        seen=trees * size * (prompt + answer),
        pairs=trees * (_pairs(0, prompt) + size * _pairs(prompt, answer)),
    )


def rows_as_one(lengths: Lengths, places: Sequence[int]) -> MicroBatch:
    """What these rows are together, whatever passes the model at once."""
    return _of_rows([lengths.rows[i] for i in places], recompute=False)


def keys_met(lengths: Lengths, places: Sequence[int]) -> float:
    """Keys that the queries of these rows meet: those before them and their own."""
    return float(sum(_keys_of(lengths.rows[i]) for i in places))


def _keys_of(row: Rendered | RenderedGroup) -> int:
    match row:
        case Rendered():
            return _triangle(len(row.ids))
        case RenderedGroup():
            prompt, sizes = len(row.prompt_ids), [len(ids) for ids in row.response_ids]
            return _triangle(prompt) + sum(size * prompt + _triangle(size) for size in sizes)


def _triangle(tokens: int) -> int:
    return tokens * (tokens + 1) // 2


def _of_length(tokens: int, row: int, *, recompute: bool) -> MicroBatch:
    """Rows of one length of which every token is a target."""
    return MicroBatch(tokens=tokens, targets=tokens, recompute=recompute, pairs=tokens // row * _pairs(0, row))


def _of_rows(rows: Sequence[Any], *, recompute: bool) -> MicroBatch:
    parts = [_of_row(row) for row in rows]
    tokens, targets, seen, pairs = (sum(numbers) for numbers in zip(*parts, strict=True))
    return MicroBatch(tokens=tokens, targets=targets, recompute=recompute, seen=seen, pairs=pairs)


def _of_row(row: Rendered | RenderedGroup) -> tuple[int, int, int, int]:
    """Tokens, targets, what branches see, and pairs of queries and keys."""
    match row:
        case Rendered():
            targets = int(np.count_nonzero(row.weights[1:]))
            return len(row.ids), targets, 0, _pairs(0, len(row.ids))
        case RenderedGroup():
            prompt, sizes = len(row.prompt_ids), [len(ids) for ids in row.response_ids]
            seen = sum(prompt + size for size in sizes)
            pairs = _pairs(0, prompt) + sum(_pairs(prompt, size) for size in sizes)
            return prompt + sum(sizes), sum(sizes), seen, pairs


def _pairs(before: int, own: int) -> int:
    """Queries times keys as `whet.models.tree_attention` computes them, block by block."""
    segment = segments_of((Tree(0, before, (own,)) if before else Tree(0, own),))[-1]
    return sum((block.stop - block.start) * num_seen for block, num_seen in segment.blocks())
