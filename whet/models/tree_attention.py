"""Attention of packed trees in bf16 on a CPU: products over blocks of queries, a softmax, both passes by hand.

One autograd step covers the whole row. Queries go in blocks, and a block's keys end with its last query, so about half
of a causal square is never computed. The heads of a group that share a key lie side by side in one product. Scores
and probabilities are bf16, sums fp32; scale and mask are part of the products, and each pass of the softmax is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from whet.schema.packed import Tree

BLOCK = 128
"""Queries of a block: a longer one computes more of the square's unseen half, a shorter one makes small products."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens that sees itself causally and the whole of what stands before it: a prompt, or a branch."""

    prompt: slice
    """Positions of the branch's prompt; empty for a prompt."""
    own: slice

    @property
    def num_before(self) -> int:
        return int(self.prompt.stop - self.prompt.start)

    @property
    def num_own(self) -> int:
        return int(self.own.stop - self.own.start)

    def seen(self, x: Tensor) -> Tensor:
        """[k, m, d] of x [k, T, d]: what the segment's last token sees."""
        if self.prompt.stop == self.own.start:
            return x[:, self.prompt.start : self.own.stop]
        return torch.cat([x[:, self.prompt], x[:, self.own]], dim=1)

    def add_seen(self, into: Tensor, part: Tensor) -> None:
        """Add part [k, m, d], of what the last token sees, to its places in `into` [k, T, d]."""
        into[:, self.prompt].add_(part[:, : self.num_before])
        into[:, self.own].add_(part[:, self.num_before :])

    def blocks(self) -> list[tuple[slice, int]]:
        """Blocks of queries, of about the same size, and how many tokens the last query of each sees."""
        count = -(-self.num_own // BLOCK)
        edges = [self.num_own * i // count for i in range(count + 1)]
        first, before = self.own.start, self.num_before
        return [(slice(first + i, first + j), before + j) for i, j in pairwise(edges)]


def segments_of(trees: Sequence[Tree]) -> list[Segment]:
    """Every prompt and branch, in the order of their tokens."""
    found = []
    for tree in trees:
        prompt = slice(tree.start, tree.start + tree.prompt)
        found.append(Segment(slice(prompt.start, prompt.start), prompt))
        found += [Segment(prompt, slice(start, start + size)) for start, size in tree.spans()]
    return found


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
        q, k, v = _by_key(query.transpose(0, 1), len(key)), key.contiguous(), value.contiguous()
        mixed, kept = torch.empty_like(q), []
        for segment in segments:
            # Turned once a segment: a product with a part of a turned view would copy it again.
            keys, values = segment.seen(k).transpose(1, 2).contiguous(), segment.seen(v)
            for block, num_seen in segment.blocks():
                unseen = _unseen(block.stop - block.start, q.shape[2], num_seen, q.dtype)
                p = torch.baddbmm(unseen, _rows(q, block), keys[..., :num_seen], alpha=scale).softmax(dim=-1)
                torch.bmm(p, values[:, :num_seen], out=_rows(mixed, block))
                kept.append(p)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale, ctx.segments = scale, segments
        return _by_token(mixed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        grad, scale = _by_key(grad, len(k)), ctx.scale
        for_q = torch.empty_like(q)
        for_k, for_v = (torch.zeros(k.shape, dtype=torch.float32) for _ in range(2))
        for segment in reversed(ctx.segments):
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
        return _by_token(for_q).transpose(0, 1), for_k.to(k.dtype), for_v.to(v.dtype), None, None


def _by_key(x: Tensor, keys: int) -> Tensor:
    """[T, h, d] to [k, T, h / k, d]: for each key head its queries, those of a token side by side."""
    return torch.unflatten(x, 1, (keys, -1)).transpose(0, 1).contiguous()


def _by_token(x: Tensor) -> Tensor:
    """[k, T, g, d] to [T, k g, d]."""
    return x.transpose(0, 1).flatten(1, 2)


def _rows(x: Tensor, block: slice) -> Tensor:
    """[k, n g, d], a view of the block's queries in x [k, T, g, d]."""
    return x[:, block].flatten(1, 2)


@lru_cache(maxsize=32)
def _unseen(num: int, per_key: int, num_seen: int, dtype: torch.dtype) -> Tensor:
    """[num per_key, num_seen], added to scores: -inf where a key comes after its query. The last sees all.

    The rows of a block are its `num` queries, the `per_key` heads of each side by side.
    """
    mask = torch.zeros(num, per_key, num_seen, dtype=dtype)
    mask[..., num_seen - num :] = causal(num)[:, None]
    return mask.flatten(0, 1)


def causal(n: int) -> Tensor:
    """[n, n] float32, added to scores: -inf where a key comes after the query. A corner of one that is kept."""
    return _triangle(1 << (n - 1).bit_length())[:n, :n]


@cache
def _triangle(n: int) -> Tensor:
    return torch.full((n, n), -torch.inf).triu_(1)
