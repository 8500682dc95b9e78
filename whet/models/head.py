"""The LM head on the positions that count, tile by tile: log-probs and their gradient without ever holding the logits.

With z = W h and p = softmax(z), the log-prob of token y has a gradient that does not need the logits again:

    log p_y = z_y - lse(z)            d log p_y / d h = W_y - sum_v p_v W_v

Both lse(z) and the mean sum_v p_v W_v are running sums over tiles of the vocabulary (`whet.models.head_sums`). So the
forward pass computes all the backward pass needs, [N, H] numbers, and a frozen head costs two matrix products instead
of the usual three. An entropy that carries a gradient costs one more, and only where it is asked for. A trained head
recomputes its logits once, for its own gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from whet.models.exponential import exp_
from whet.models.head_sums import Sums, Tile, token_tiles, vocabulary_tiles
from whet.models.repeated import TARGETS, missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """logits = cap * tanh(scale * (W h + b) / cap), the cap left out where there is none."""

    weight: Tensor
    """[V, H]."""
    bias: Tensor | None = None
    """[V]."""
    scale: float = 1.0
    cap: float | None = None

    def at(self, temperature: float) -> Head:
        """The head whose logits are these divided by `temperature`. Raises ValueError where that is not above 0."""
        if temperature == 1.0:
            return self
        scale, cap = tempered(self.scale, self.cap, temperature)
        return replace(self, scale=scale, cap=cap)

    def tiles(self, dtype: torch.dtype) -> Iterator[Tile]:
        """All rows in order, in the type of the products."""
        for rows in vocabulary_tiles(len(self.weight)):
            bias = None if self.bias is None else self.bias[rows].to(torch.promote_types(dtype, torch.float32))
            weight = self.weight[rows].to(dtype)
            yield Tile(start=rows.start, weight=weight, bias=bias, scale=self.scale, cap=self.cap)


def tempered(scale: float, cap: float | None, temperature: float) -> tuple[float, float | None]:
    """Scale and cap of logits divided by a temperature T: cap tanh(scale u / cap) / T has cap / T and scale / T.

    Raises ValueError at a temperature of 0, at which there is no distribution to train.
    """
    if not temperature > 0.0:
        raise ValueError(f"a policy has no log-probs at temperature {temperature}")
    return scale / temperature, None if cap is None else cap / temperature


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """What the head says of N targets. Without slots, since ZeRO-3 looks for a module's tensors in its `__dict__`."""

    logprobs: Tensor
    """[N] float32 (float64 where the model is); carries the gradient."""
    entropy: Tensor | None
    """[N], nats, of the whole distribution; with a gradient only where that was asked for. None where it was not."""
    top1: Tensor
    """[N] bool: the target is the most likely token."""


@dataclass(frozen=True, slots=True)
class _Asked:
    head: Head
    gradient: bool
    entropy: bool
    entropy_gradient: bool


def head_scores(
    hidden: Tensor, head: Head, targets: Tensor, *, statistics: bool = False, entropy_gradient: bool = False
) -> TokenScores:
    """Score `targets` [N] from the hidden states [N, H] that predict them.

    Products are taken in the autocast type where autocast is on, else in the type of `hidden`; sums in fp32 at least.
    With `statistics` the entropy is there as well, with `entropy_gradient` it carries a gradient.
    """
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or head.weight.requires_grad)
    asked = _Asked(head, needs_grad, statistics or entropy_gradient, entropy_gradient and needs_grad)
    num, filling = len(targets), missing(len(targets), product_dtype(hidden), hidden.device, TARGETS)
    if filling:
        hidden, targets = pad(hidden, (0, 0, 0, filling)), pad(targets, (0, filling))
    logprobs, entropy, top1 = _HeadScores.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, targets, asked
    )
    return TokenScores(
        logprobs=logprobs[:num], entropy=None if entropy is None else entropy[:num], top1=top1[:num]
    )  # fmt: skip


class _HeadScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, asked: _Asked
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        head = replace(asked.head, weight=weight.detach(), bias=None if bias is None else bias.detach())
        narrow = hidden.detach().to(product_dtype(hidden))
        with torch.autocast(hidden.device.type, enabled=False):
            sums = Sums(
                narrow, targets, with_gradient=asked.gradient, with_entropy=asked.entropy,
                with_entropy_gradient=asked.entropy_gradient,
            )  # fmt: skip
            for tile in head.tiles(narrow.dtype):
                sums.add(tile)
            lse = sums.lse()
            entropy = sums.entropy() if asked.entropy else None
            top1 = sums.target >= sums.largest
            if asked.gradient:
                direction = sums.direction(head.weight, head.scale)
                of_entropy = (entropy, sums.entropy_direction(head.scale)) if asked.entropy_gradient else (None, None)
                ctx.save_for_backward(narrow, weight, bias, targets, lse, direction, *of_entropy)
        ctx.head, ctx.dtype = head, hidden.dtype
        constant = (top1,) if asked.entropy_gradient or entropy is None else (entropy, top1)
        ctx.mark_non_differentiable(*constant)
        return sums.target - lse, entropy, top1

    @staticmethod
    def backward(ctx: Any, grad: Tensor, entropy_grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, lse, direction, entropy, entropy_direction = ctx.saved_tensors
        for_hidden = for_weight = for_bias = None
        with torch.autocast(hidden.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                for_hidden = grad.unsqueeze(-1) * direction
                if entropy_direction is not None:
                    for_hidden.addcmul_(entropy_grad.unsqueeze(-1), entropy_direction)
                for_hidden = for_hidden.to(ctx.dtype)
            if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
                logits = _LogitGradient(targets, lse, grad, None if entropy is None else (entropy, entropy_grad))
                for_weight, for_bias = _head_gradient(hidden, ctx.head, logits)
                for_weight = for_weight.to(weight.dtype)
                for_bias = None if for_bias is None or bias is None else for_bias.to(bias.dtype)
        return for_hidden, for_weight, for_bias, None, None


@dataclass(frozen=True, slots=True)
class _LogitGradient:
    """d loss / d logits of N tokens, where g is d loss / d log p_y and k is d loss / d H."""

    targets: Tensor
    lse: Tensor
    grad: Tensor
    """g [N]."""
    entropy: tuple[Tensor, Tensor] | None
    """H and k, [N] each; None where no gradient goes through the entropy."""

    def at(self, z: Tensor, tile: Tile, rows: slice) -> Tensor:
        """scale slope_nv (g_n (1[v = y_n] - p_nv) - k_n p_nv (log p_nv + H_n)), [n, v], of the logits z it takes."""
        slope = tile.slope(z)
        log_share = z.sub_(self.lse[rows].unsqueeze(-1))
        surprise = None
        if self.entropy is not None:
            entropy, grad = (part[rows].unsqueeze(-1) for part in self.entropy)
            surprise = (log_share + entropy).mul_(grad * tile.scale)
        share = exp_(log_share)
        if surprise is not None:
            surprise.mul_(share)
        share.neg_()
        share[tile.own(self.targets[rows])] += 1.0
        share.mul_(self.grad[rows].unsqueeze(-1) * tile.scale)
        if surprise is not None:
            share.sub_(surprise)
        return share if slope is None else share.mul_(slope)


def _head_gradient(hidden: Tensor, head: Head, logits: _LogitGradient) -> tuple[Tensor, Tensor | None]:
    """Gradients of weight and bias, the logits computed once more."""
    wide = logits.lse.dtype
    for_weight = torch.empty(head.weight.shape, dtype=wide, device=hidden.device)
    for_bias = None if head.bias is None else torch.empty(head.bias.shape, dtype=wide, device=hidden.device)
    for tile in head.tiles(hidden.dtype):
        end = tile.start + len(tile.weight)
        into = for_weight[tile.start : end].zero_()
        into_bias = None if for_bias is None else for_bias[tile.start : end].zero_()
        for rows in token_tiles(len(hidden)):
            share = logits.at(tile.logits(hidden[rows]), tile, rows)
            into.add_(torch.mm(share.to(hidden.dtype).t(), hidden[rows]))
            if into_bias is not None:
                into_bias.add_(share.sum(dim=0))
    return for_weight, for_bias


def logits_of(hidden: Tensor, head: Head) -> Tensor:
    """[N, V] of hidden states [N, H] of the head's type, whole: for generation, where one position a row is wanted.

    In that type where the head is a product and nothing else, as it is for most models; else in fp32 at least.
    """
    if head.bias is None and head.scale == 1.0 and head.cap is None:
        return torch.mm(hidden, head.weight.t())
    return Tile(start=0, weight=head.weight, bias=head.bias, scale=head.scale, cap=head.cap).logits(hidden)


def product_dtype(hidden: Tensor) -> torch.dtype:
    """The type of products with `hidden`: autocast's where it is on."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
