"""What every formula returns: a sum over its unit, and numbers for the log.

A formula never averages. The loop adds the units of all micro-batches and ranks before the first backward pass and
divides once, so the gradient cannot depend on how a batch was split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Total:
    """A quantity summed over `count` things, still on the device; its mean is total / count."""

    total: Tensor
    count: float


@dataclass(frozen=True, slots=True)
class Loss:
    """`total` is a scalar that carries the gradient, summed over the formula's unit (token, pair)."""

    total: Tensor
    metrics: Mapping[str, Total] = field(default_factory=dict)
