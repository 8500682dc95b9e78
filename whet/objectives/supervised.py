"""Likelihood objectives over single tokens."""

from __future__ import annotations

from torch import Tensor

from whet.objectives.loss import Loss


def nll(logprobs: Tensor, weights: Tensor) -> Loss:
    """Negative log-likelihood, -sum_t w_t log p(y_t | y_<t, x).

    `logprobs` and `weights` are [N]: one entry per trained token. Unit: weighted token (divide by weights.sum()).
    """
    return Loss(-(weights * logprobs).sum())
