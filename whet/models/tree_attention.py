"""Attention of packed trees in bf16 on a CPU: products over blocks of queries, a softmax, both passes by hand.

One autograd step covers the whole row. Queries go in blocks, and a block's keys end with its last query, so about half
of a causal square is never computed. The heads of a group that share a key lie side by side in one product. Scores
and probabilities are bf16, sums fp32; scale and mask are part of the products, and each pass of the softmax is one.
Segments have room for a round number of tokens each, so that products have few shapes (`whet.models.repeated`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from whet.models.repeated import SEGMENT_TOKENS
from whet.schema.packed import Tree

BLOCK = 128
"""Queries of a block: a longer one computes more of the square's unseen half, a shorter one makes small products."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens that sees itself causally and the whole of what stands before it: a prompt, or a branch."""

    prompt: slice
    """Positions of the branch's prompt; empty for a prompt."""
    own: slice
    prompt_room: slice
    """Where the same stand while attention is computed, filling behind each."""
    room: slice

    @property
    def num_before(self) -> int:
        return int(self.prompt.stop - self.prompt.start)

    @property
    def num_own(self) -> int:
        return int(self.own.stop - self.own.start)

    @property
    def filled(self) -> slice:
        """The part of its room that its tokens take."""
        return slice(self.room.start, self.room.start + self.num_own)

    @property
    def room_before(self) -> int:
        return int(self.prompt_room.stop - self.prompt_room.start)

    def seen(self, x: Tensor) -> Tensor:
        """[k, m, d] of x [k, R, d]: what stands before the segment, and its own."""
        if self.prompt_room.stop == self.room.start:
            return x[:, self.prompt_room.start : self.room.stop]
        return torch.cat([x[:, self.prompt_room], x[:, self.room]], dim=1)

    def add_seen(self, into: Tensor, part: Tensor) -> None:
        """Add part [k, m, d], of what the segment sees, to its places in `into` [k, R, d]."""
        into[:, self.prompt_room].add_(part[:, : self.room_before])
        into[:, self.room].add_(part[:, self.room_before :])

    def blocks(self) -> list[tuple[slice, int]]:
        """Blocks of queries, of about the same size, and how many keys the last query of each sees, filling behind the
        prompt included."""
        grains = (self.room.stop - self.room.start) // SEGMENT_TOKENS
        count = min(grains, -(-grains * SEGMENT_TOKENS // BLOCK))
        edges = [SEGMENT_TOKENS * (grains * i // count) for i in range(count + 1)]
        first, before = self.room.start, self.room_before
        return [(slice(first + i, first + j), before + j) for i, j in pairwise(edges)]


def segments_of(trees: Sequence[Tree]) -> list[Segment]:
    """Every prompt and branch, in the order of their tokens."""
    found, end = list[Segment](), 0
    for tree in trees:
        prompt, prompt_room = slice(tree.start, tree.start + tree.prompt), _room(end, tree.prompt)
        nothing, end = slice(prompt.start, prompt.start), prompt_room.stop
        found.append(Segment(nothing, prompt, slice(prompt_room.start, prompt_room.start), prompt_room))
        for start, size in tree.spans():
            room = _room(end, size)
            found.append(Segment(prompt, slice(start, start + size), prompt_room, room))
            end = room.stop
    return found


def _room(start: int, size: int) -> slice:
    return slice(start, start + -(-size // SEGMENT_TOKENS) * SEGMENT_TOKENS)


def tree_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, segments: Sequence[Segment]) -> Tensor:
    """softmax(scale * q k^T) v under the trees' mask.

    query [h, T, d], key and value [k, T, d] with h a multiple of k. Returns [T, h, d]. The probabilities are kept for
    the backward pass in the queries' type.
    """
    out: Tensor = _TreeAttention.apply(query, key, value, scale, segments)  # type: ignore[no-untyped-call]
    return out


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, segments: Sequence[Segment]
    ) -> Tensor:
        q = _in_rooms(_by_key(query, len(key)), segments)
        k, v = _in_rooms(key, segments), _in_rooms(value, segments)
        mixed, kept = torch.empty_like(q), []
        for segment in segments:
            # Turned once a segment: a product with a part of a turned view would copy it again.
            keys, values = segment.seen(k).transpose(1, 2).contiguous(), segment.seen(v)
            for block, num_seen in segment.blocks():
                size = block.stop - block.start
                unseen = _unseen(size, q.shape[2], num_seen, segment.num_before, segment.room_before, q.dtype)
                p = torch.baddbmm(unseen, _rows(q, block), keys[..., :num_seen], alpha=scale).softmax(dim=-1)
                torch.bmm(p, values[:, :num_seen], out=_rows(mixed, block))
                kept.append(p)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale, ctx.segments, ctx.num = scale, segments, query.shape[1]
        return _by_token(mixed, segments, ctx.num)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        scale, segments = ctx.scale, ctx.segments
        grad = _in_rooms(_by_key(grad.transpose(0, 1), len(k)), segments)
        for_q = torch.empty_like(q)
        for_k, for_v = (torch.zeros(k.shape, dtype=torch.float32) for _ in range(2))
        for segment in reversed(segments):
            keys, values = segment.seen(k), segment.seen(v).transpose(1, 2).contiguous()
            for_keys, for_values = torch.empty_like(keys), torch.empty_like(keys)
            beta = 0  # the last block sees all keys and comes first: it fills what the others add to
            for block, num_seen in reversed(segment.blocks()):
                p, rows = kept.pop(), _rows(grad, block)
                for_values[:, :num_seen].baddbmm_(p.transpose(1, 2), rows, beta=beta)
                d = torch._softmax_backward_data(torch.bmm(rows, values[..., :num_seen]), p, -1, p.dtype)
                _rows(for_q, block).baddbmm_(d, keys[:, :num_seen], beta=0, alpha=scale)
                for_keys[:, :num_seen].baddbmm_(d.transpose(1, 2), _rows(q, block), beta=beta, alpha=scale)
                beta = 1
            segment.add_seen(for_k, for_keys)
            segment.add_seen(for_v, for_values)
        key, value = (_of_tokens(x, segments, ctx.num, k.dtype) for x in (for_k, for_v))
        return _by_token(for_q, segments, ctx.num).transpose(0, 1), key, value, None, None


def _by_key(x: Tensor, keys: int) -> Tensor:
    """[h, T, d] to [k, T, h / k, d]: for each key head its queries, those of a token side by side."""
    return torch.unflatten(x, 0, (keys, -1)).transpose(1, 2)


def _in_rooms(x: Tensor, segments: Sequence[Segment]) -> Tensor:
    """[k, T, ...] to [k, R, ...], every segment in its room. What fills the rest is zero: a query there is one like any
    other, whose output nobody takes and whose gradient is zero, and no token sees a key there."""
    roomy = x.new_zeros(len(x), segments[-1].room.stop, *x.shape[2:])
    for segment in segments:
        roomy[:, segment.filled] = x[:, segment.own]
    return roomy


def _of_tokens(x: Tensor, segments: Sequence[Segment], num: int, dtype: torch.dtype) -> Tensor:
    """The way back."""
    tokens = x.new_empty(len(x), num, *x.shape[2:], dtype=dtype)
    for segment in segments:
        tokens[:, segment.own] = x[:, segment.filled]
    return tokens


def _by_token(x: Tensor, segments: Sequence[Segment], num: int) -> Tensor:
    """[k, R, g, d] to [T, k g, d]."""
    tokens = x.new_empty(num, len(x), *x.shape[2:])
    for segment in segments:
        tokens[segment.own] = x[:, segment.filled].transpose(0, 1)
    return tokens.flatten(1, 2)


def _rows(x: Tensor, block: slice) -> Tensor:
    """[k, n g, d], a view of the block's queries in x [k, T, g, d]."""
    return x[:, block].flatten(1, 2)


@lru_cache(maxsize=64)
def _unseen(num: int, per_key: int, num_seen: int, before: int, room_before: int, dtype: torch.dtype) -> Tensor:
    """[num per_key, num_seen], added to scores: -inf where a key comes after its query, or fills the room behind the
    `before` tokens of the prompt. The last query sees all others.

    The rows of a block are its `num` queries, the `per_key` heads of each side by side.
    """
    mask = torch.zeros(num, per_key, num_seen, dtype=dtype)
    mask[..., num_seen - num :] = causal(num)[:, None]
    mask[..., before:room_before] = -torch.inf
    return mask.flatten(0, 1)


def causal(n: int) -> Tensor:
    """[n, n] float32, added to scores: -inf where a key comes after the query. A corner of one that is kept."""
    return _triangle(1 << (n - 1).bit_length())[:n, :n]


@cache
def _triangle(n: int) -> Tensor:
    return torch.full((n, n), -torch.inf).triu_(1)
