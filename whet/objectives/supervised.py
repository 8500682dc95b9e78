"""Likelihood objectives over single tokens."""

from __future__ import annotations

from torch import Tensor

from whet.objectives.loss import Loss


def nll(logprobs: Tensor, weights: Tensor) -> Loss:
    """Negative log-likelihood, -sum_t w_t log p(y_t | y_<t, x).

    `logprobs` and `weights` are [N]: one entry per trained token. Unit: weighted token (divide by weights.sum()).
    """
    return Loss(-(weights * logprobs).sum())


def dft(logprobs: Tensor, weights: Tensor) -> Loss:
    """Dynamic Fine-Tuning, -sum_t w_t sg[p_t] log p_t (Wu et al., 2508.05629). Unit: weighted token.

    The factor p_t undoes the 1/p_t with which the gradient of the log-likelihood grows on tokens the model finds
    unlikely. The value is no likelihood: it falls where the model is sure and where it is hopeless.
    """
    return Loss(-(weights * logprobs.detach().exp() * logprobs).sum())
