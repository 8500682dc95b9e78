"""Two pairs in float64 that every pairwise test works with, and the two functions its arithmetic needs."""

from __future__ import annotations

import math

import torch

from whet.objectives.loss import Loss
from whet.objectives.pairwise import PairLogprobs


def pairs(
    chosen=(-10.0, -4.0), rejected=(-12.0, -3.0), ref_chosen=(-11.0, -4.5), ref_rejected=(-11.0, -4.0)
) -> PairLogprobs:
    """Two pairs. r_w = (1, 0.5), r_l = (-1, 1), so h = (2, -0.5); lengths (5, 2) and (4, 4).

    Mean log-probs: chosen (-2, -2), rejected (-3, -0.75).
    """

    def tensor(values: tuple[float, ...]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return PairLogprobs(
        chosen=tensor(chosen).requires_grad_(),
        rejected=tensor(rejected).requires_grad_(),
        reference_chosen=tensor(ref_chosen),
        reference_rejected=tensor(ref_rejected),
        chosen_length=tensor((5.0, 2.0)),
        rejected_length=tensor((4.0, 4.0)),
    )


def at_reference() -> PairLogprobs:
    """The same two pairs where policy and reference agree."""
    return pairs(ref_chosen=(-10.0, -4.0), ref_rejected=(-12.0, -3.0))


def softplus(x: float) -> float:
    """log(1 + e^x) = -log sigma(-x)."""
    return math.log1p(math.exp(x))


def sigma(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def means(loss: Loss) -> dict[str, float]:
    """The metrics as the log shows them."""
    return {name: float(metric.total) / metric.count for name, metric in loss.metrics.items()}
