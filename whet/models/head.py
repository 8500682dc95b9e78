"""The LM head on the positions that count, tile by tile: log-probs and their gradient without ever holding the logits.

With z = W h and p = softmax(z), the log-prob of token y has a gradient that does not need the logits again:

    log p_y = z_y - lse(z)            d log p_y / d h = W_y - sum_v p_v W_v

Both lse(z) and the mean sum_v p_v W_v are running sums over tiles of the vocabulary, rescaled whenever a larger logit
appears (the online softmax of Milakov & Gimelshein, 1805.02867). So the forward pass computes all the backward pass
needs, [N, H] numbers, and a frozen head costs two matrix products instead of the usual three. A trained
head recomputes its logits once, for its own gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

TILE_TOKENS, TILE_VOCABULARY = 512, 2048
"""Tokens and head rows of a tile: its logits, 4 MiB in fp32, stay in a CPU's caches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """logits = cap * tanh(scale * (W h + b) / cap), the cap left out where there is none."""

    weight: Tensor
    """[V, H]."""
    bias: Tensor | None = None
    """[V]."""
    scale: float = 1.0
    cap: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """What the head says of N targets."""

    logprobs: Tensor
    """[N] float32 (float64 where the model is); carries the gradient."""
    entropy: Tensor | None
    """[N], nats, of the whole distribution; without gradient. None where it was not asked for."""
    top1: Tensor
    """[N] bool: the target is the most likely token."""


def head_scores(hidden: Tensor, head: Head, targets: Tensor, *, statistics: bool = False) -> TokenScores:
    """Score `targets` [N] from the hidden states [N, H] that predict them.

    Products are taken in the autocast type where autocast is on, else in the type of `hidden`; sums in fp32 at least.
    With `statistics` the entropy is there as well.
    """
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or head.weight.requires_grad)
    options = head, statistics, needs_grad
    logprobs, entropy, top1 = _HeadScores.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, targets, options
    )
    return TokenScores(logprobs=logprobs, entropy=entropy, top1=top1)


class _HeadScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: tuple[Head, bool, bool]
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        head, statistics, needs_grad = options
        head = replace(head, weight=weight.detach(), bias=None if bias is None else bias.detach())
        narrow = hidden.detach().to(product_dtype(hidden))
        with torch.autocast(hidden.device.type, enabled=False):
            sums = _Sums(narrow, head, targets, with_mean=needs_grad, with_entropy=statistics)
            for tile in _vocabulary_tiles(head, narrow.dtype):
                sums.add(tile)
            lse = sums.lse()
            entropy = sums.entropy() if statistics else None
            top1 = sums.target >= sums.largest
            if needs_grad:
                ctx.save_for_backward(narrow, weight, bias, targets, lse, sums.direction())
        ctx.head, ctx.dtype = head, hidden.dtype
        ctx.mark_non_differentiable(*(t for t in (entropy, top1) if t is not None))
        return sums.target - lse, entropy, top1

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, lse, direction = ctx.saved_tensors
        for_hidden = for_weight = for_bias = None
        with torch.autocast(hidden.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                for_hidden = (grad.unsqueeze(-1) * direction).to(ctx.dtype)
            if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
                for_weight, for_bias = _head_gradient(hidden, ctx.head, targets, lse, grad)
                for_weight = for_weight.to(weight.dtype)
                for_bias = None if for_bias is None or bias is None else for_bias.to(bias.dtype)
        return for_hidden, for_weight, for_bias, None, None


@dataclass(frozen=True, slots=True)
class _Tile:
    """Rows `start` and following of the head, in the type of the products."""

    start: int
    weight: Tensor
    bias: Tensor | None


class _Sums:
    """Running sums over the vocabulary for N tokens."""

    def __init__(self, hidden: Tensor, head: Head, targets: Tensor, *, with_mean: bool, with_entropy: bool) -> None:
        num, width = hidden.shape
        wide = torch.promote_types(hidden.dtype, torch.float32)
        self._hidden, self._head, self._targets = hidden, head, targets
        self.largest = torch.full((num,), -torch.inf, dtype=wide, device=hidden.device)
        """Largest logit m so far."""
        self.total = torch.zeros_like(self.largest)
        """Sum of e = exp(z - m)."""
        self.target = torch.zeros_like(self.largest)
        """The target's logit, once its tile has passed."""
        self.slope = torch.ones_like(self.largest)
        """dz / d(scale * W h) at the target; below 1 under a cap."""
        self.mean = torch.zeros(num, width, dtype=wide, device=hidden.device) if with_mean else None
        """Sum of e * slope * W."""
        self.below = torch.zeros_like(self.largest) if with_entropy else None
        """Sum of e * (z - m)."""

    def add(self, tile: _Tile) -> None:
        """Take in the next rows of the head."""
        for rows in _slices(len(self._targets), TILE_TOKENS):
            z = _logits(self._hidden[rows], tile, self._head)
            self._take_targets(z, tile.start, rows)
            self._accumulate(z, tile, rows)

    def _accumulate(self, z: Tensor, tile: _Tile, rows: slice) -> None:
        slope = _slope(z, self._head)
        before = self.largest[rows]
        largest = torch.maximum(before, z.amax(dim=-1))
        shrink = (before - largest).exp_()
        z.sub_(largest.unsqueeze(-1))
        if self.below is not None:
            e = z.exp()
            # What was counted from the old m is counted from the new one; at the start there is nothing yet to move.
            moved = self.below[rows] + self.total[rows] * (before - largest).clamp_min(-1e30)
            self.below[rows] = moved.mul_(shrink).add_((e * z).sum(dim=-1))
        else:
            e = z.exp_()
        self.total[rows] = self.total[rows].mul_(shrink).add_(e.sum(dim=-1))
        self.largest[rows] = largest
        if self.mean is not None:
            product = torch.mm((e if slope is None else e * slope).to(tile.weight.dtype), tile.weight)
            self.mean[rows] = self.mean[rows].mul_(shrink.unsqueeze(-1)).add_(product)

    def _take_targets(self, z: Tensor, start: int, rows: slice) -> None:
        place = self._targets[rows] - start
        here = ((place >= 0) & (place < z.shape[-1])).nonzero(as_tuple=True)[0]
        taken = z[here, place[here]]
        self.target[rows.start + here] = taken
        if self._head.cap is not None:
            self.slope[rows.start + here] = 1.0 - (taken / self._head.cap).square()

    def lse(self) -> Tensor:
        return self.largest + self.total.log()

    def direction(self) -> Tensor:
        """d log p_y / d h, [N, H]: scale * (slope_y W_y - sum_v p_v slope_v W_v)."""
        assert self.mean is not None
        own = self._head.weight[self._targets].to(self._hidden.dtype).to(self.mean.dtype)
        own.mul_(self.slope.unsqueeze(-1))
        return own.sub_(self.mean / self.total.unsqueeze(-1)).mul_(self._head.scale)

    def entropy(self) -> Tensor:
        """lse(z) - sum_v p_v z_v."""
        assert self.below is not None
        return self.total.log() - self.below / self.total


def _head_gradient(
    hidden: Tensor, head: Head, targets: Tensor, lse: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor | None]:
    """sum_n g_n (1[v = y_n] - p_nv) slope_nv h_n for every row v of the head, the logits computed once more."""
    for_weight = torch.empty(head.weight.shape, dtype=lse.dtype, device=hidden.device)
    for_bias = None if head.bias is None else torch.empty(head.bias.shape, dtype=lse.dtype, device=hidden.device)
    for tile in _vocabulary_tiles(head, hidden.dtype):
        end = tile.start + len(tile.weight)
        into = for_weight[tile.start : end].zero_()
        into_bias = None if for_bias is None else for_bias[tile.start : end].zero_()
        for rows in _slices(len(targets), TILE_TOKENS):
            z = _logits(hidden[rows], tile, head)
            slope = _slope(z, head)
            share = z.sub_(lse[rows].unsqueeze(-1)).exp_().neg_()
            place = targets[rows] - tile.start
            here = ((place >= 0) & (place < len(tile.weight))).nonzero(as_tuple=True)[0]
            share[here, place[here]] += 1.0
            share.mul_(grad[rows].unsqueeze(-1) * head.scale)
            if slope is not None:
                share.mul_(slope)
            into.add_(torch.mm(share.to(hidden.dtype).t(), hidden[rows]))
            if into_bias is not None:
                into_bias.add_(share.sum(dim=0))
    return for_weight, for_bias


def _logits(hidden: Tensor, tile: _Tile, head: Head) -> Tensor:
    """[n, v] in fp32 at least."""
    z = torch.mm(hidden, tile.weight.t())
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    if tile.bias is not None:
        z.add_(tile.bias)
    if head.scale != 1.0:
        z.mul_(head.scale)
    if head.cap is not None:
        z.div_(head.cap).tanh_().mul_(head.cap)
    return z


def logits_of(hidden: Tensor, head: Head) -> Tensor:
    """[N, V] of hidden states [N, H] of the head's type, whole: for generation, where one position a row is wanted.

    In that type where the head is a product and nothing else, as it is for most models; else in fp32 at least.
    """
    if head.bias is None and head.scale == 1.0 and head.cap is None:
        return torch.mm(hidden, head.weight.t())
    return _logits(hidden, _Tile(0, head.weight, head.bias), head)


def _slope(z: Tensor, head: Head) -> Tensor | None:
    """d(cap tanh(u / cap)) / du = 1 - (z / cap)^2; None where there is no cap."""
    return None if head.cap is None else 1.0 - (z / head.cap).square_()


def _vocabulary_tiles(head: Head, dtype: torch.dtype) -> Iterator[_Tile]:
    for rows in _slices(len(head.weight), TILE_VOCABULARY):
        bias = None if head.bias is None else head.bias[rows].to(torch.promote_types(dtype, torch.float32))
        yield _Tile(rows.start, head.weight[rows].to(dtype), bias)


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def product_dtype(hidden: Tensor) -> torch.dtype:
    """The type of products with `hidden`: autocast's where it is on."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
