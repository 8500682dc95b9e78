"""Running sums over the vocabulary, tile by tile: all that log-probs, entropies and their gradients need of the logits.

With e_v = exp(z_v - m), m the largest logit so far, s_v = dz_v / du_v below 1 under a cap, and u = scale (W h + b):

    log p_y = z_y - m - log S            S = sum_v e_v
    H       = log S - B / S              B = sum_v e_v (z_v - m)

    d log p_y / d h = scale (s_y W_y - M / S)        M = sum_v e_v s_v W_v
    d H / d h       = scale (B M / S - C) / S        C = sum_v e_v (z_v - m) s_v W_v

the last from dH / dz_v = -p_v (log p_v + H). A larger logit moves m, and every sum with it (the online softmax of
Milakov & Gimelshein, 1805.02867): S and M shrink by exp(m - m'), B and C have m - m' times S and M added before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, starmap

import torch
from torch import Tensor

from whet.models.exponential import exp, exp_
from whet.models.repeated import TARGETS

TILE_TOKENS, TILE_VOCABULARY = 512, 2048
"""Tokens and head rows of a tile: its logits, 4 MiB in fp32, stay in a CPU's caches."""
GRAIN_VOCABULARY = 64
"""Tiles begin at a multiple of so many head rows: a product over an odd number of them ends in an odd piece each time,
and in bf16 has its factors copied to make it even."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Rows `start` and following of the head, in the type of the products, and what is done to its logits."""

    start: int
    weight: Tensor
    bias: Tensor | None
    scale: float
    cap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, v] in fp32 at least."""
        z = torch.mm(hidden, self.weight.t())
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        if self.bias is not None:
            z.add_(self.bias)
        if self.scale != 1.0:
            z.mul_(self.scale)
        if self.cap is not None:
            z.div_(self.cap).tanh_().mul_(self.cap)
        return z

    def slope(self, z: Tensor) -> Tensor | None:
        """d(cap tanh(u / cap)) / du = 1 - (z / cap)^2; None where there is no cap."""
        return None if self.cap is None else 1.0 - (z / self.cap).square_()

    def own(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the tokens have their target here, and in which column."""
        place = targets - self.start
        here = ((place >= 0) & (place < len(self.weight))).nonzero(as_tuple=True)[0]
        return here, place[here]


class Sums:
    """The sums for N tokens."""

    def __init__(
        self, hidden: Tensor, targets: Tensor, *, with_gradient: bool, with_entropy: bool, with_entropy_gradient: bool
    ) -> None:
        """What is not asked for is not summed. `with_entropy_gradient` needs the other two."""
        num, width = hidden.shape
        wide = torch.promote_types(hidden.dtype, torch.float32)
        self._hidden, self._targets = hidden, targets
        self.largest = torch.full((num,), -torch.inf, dtype=wide, device=hidden.device)
        """m."""
        self.total = torch.zeros_like(self.largest)
        """S."""
        self.target = torch.zeros_like(self.largest)
        """z_y, once its tile has passed."""
        self.slope = torch.ones_like(self.largest)
        """s_y."""
        self.mean = torch.zeros(num, width, dtype=wide, device=hidden.device) if with_gradient else None
        """M."""
        self.below = torch.zeros_like(self.largest) if with_entropy else None
        """B."""
        self.below_mean = torch.zeros_like(self.mean) if with_entropy_gradient and self.mean is not None else None
        """C."""

    def add(self, tile: Tile) -> None:
        """Take in the next rows of the head."""
        for rows in token_tiles(len(self._targets)):
            z = tile.logits(self._hidden[rows])
            self._take_targets(z, tile, rows)
            self._accumulate(z, tile, rows)

    def _accumulate(self, z: Tensor, tile: Tile, rows: slice) -> None:
        slope = tile.slope(z)
        before = self.largest[rows]
        largest = torch.maximum(before, z.amax(dim=-1))
        shrink = (before - largest).exp_()
        z.sub_(largest.unsqueeze(-1))
        if self.below is not None:
            e = exp(z)
            # What was counted from the old m is counted from the new one; at the start there is nothing yet to move.
            moved = (before - largest).clamp_min(-1e30)
            lower = z.mul_(e)
            self.below[rows] = (self.below[rows] + self.total[rows] * moved).mul_(shrink).add_(lower.sum(dim=-1))
            if self.below_mean is not None and self.mean is not None:
                shifted = torch.addcmul(self.below_mean[rows], self.mean[rows], moved.unsqueeze(-1))
                self.below_mean[rows] = shifted.mul_(shrink.unsqueeze(-1)).add_(_rows_of(tile, lower, slope))
        else:
            e = exp_(z)
        self.total[rows] = self.total[rows].mul_(shrink).add_(e.sum(dim=-1))
        self.largest[rows] = largest
        if self.mean is not None:
            self.mean[rows] = self.mean[rows].mul_(shrink.unsqueeze(-1)).add_(_rows_of(tile, e, slope))

    def _take_targets(self, z: Tensor, tile: Tile, rows: slice) -> None:
        here, columns = tile.own(self._targets[rows])
        taken = z[here, columns]
        self.target[rows.start + here] = taken
        if tile.cap is not None:
            self.slope[rows.start + here] = 1.0 - (taken / tile.cap).square()

    def lse(self) -> Tensor:
        return self.largest + self.total.log()

    def entropy(self) -> Tensor:
        assert self.below is not None
        return self.total.log() - self.below / self.total

    def direction(self, weight: Tensor, scale: float) -> Tensor:
        """d log p_y / d h, [N, H]; `weight` [V, H] is the whole head's."""
        assert self.mean is not None
        own = weight[self._targets].to(self._hidden.dtype).to(self.mean.dtype)
        own.mul_(self.slope.unsqueeze(-1))
        return own.sub_(self.mean / self.total.unsqueeze(-1)).mul_(scale)

    def entropy_direction(self, scale: float) -> Tensor:
        """d H / d h, [N, H]."""
        assert self.mean is not None and self.below is not None and self.below_mean is not None
        share = (self.below / self.total).unsqueeze(-1)
        return (share * self.mean).sub_(self.below_mean).mul_(scale / self.total.unsqueeze(-1))


def _rows_of(tile: Tile, factors: Tensor, slope: Tensor | None) -> Tensor:
    """sum_v factor_nv slope_nv W_v."""
    return torch.mm((factors if slope is None else factors * slope).to(tile.weight.dtype), tile.weight)


def token_tiles(num: int) -> Iterator[slice]:
    return _slices(num, TILE_TOKENS, TARGETS)


def vocabulary_tiles(num: int) -> Iterator[slice]:
    return _slices(num, TILE_VOCABULARY, GRAIN_VOCABULARY)


def _slices(length: int, size: int, grain: int) -> Iterator[slice]:
    """Parts of at most `size`, about equal: a small rest would cost a product as much as a whole part. All but the last
    are a multiple of `grain`, which divides `size`."""
    grains, count = -(-length // grain), -(-length // size)
    edges = [min(length, grain * (grains * i // max(1, count))) for i in range(count + 1)]
    return starmap(slice, pairwise(edges))
