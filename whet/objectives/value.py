"""The value function of PPO: its loss, and how much of the returns it explains. Unit: token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.objectives.loss import Loss, Total
from whet.objectives.moments import Moments


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueTokens:
    """Values of the states before N response tokens."""

    values: Tensor
    """[N], carries the gradient."""
    old_values: Tensor
    """[N], those that the advantages were made with."""
    returns: Tensor
    """[N], advantage plus old value."""


def value_loss(tokens: ValueTokens, *, clip: float | None) -> Loss:
    """1/2 max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2), the value's counterpart of PPO's clip.

    The factor 1/2 is verl's and TRL's. None is the plain squared error, 1/2 (V - R)^2.
    """
    losses = (tokens.values - tokens.returns).square()
    num = float(len(tokens.values))
    metrics: dict[str, Total] = {"val/mean": Total(tokens.values.detach().sum(), num)}
    if clip is not None:
        near = tokens.old_values + (tokens.values - tokens.old_values).clamp(-clip, clip)
        clipped = (near - tokens.returns).square()
        metrics["val/clipfrac_avg"] = Total((clipped > losses).to(losses.dtype).sum(), num)
        losses = torch.maximum(losses, clipped)
    total = 0.5 * losses.sum()
    metrics["loss/value_avg"] = Total(total.detach(), num)
    return Loss(total, metrics)


def explained_variance(errors: Moments, returns: Moments) -> float:
    """1 - Var(R - V) / Var(R): 1 for a perfect value function, 0 for a constant one, below 0 for a harmful one.

    `errors` are those of R - V. NaN where all returns are the same.
    """
    return 1.0 - errors.variance / returns.variance if returns.variance > 0 else math.nan
