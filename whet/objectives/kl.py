"""KL(policy || reference) from the tokens the policy drew, and the weight it is given.

An estimator sees log-probs of sampled tokens only. With d = log pi_ref - log pi the three of Schulman (2020,
joschu.net/blog/kl-approx.html) are k1 = -d, k2 = d^2 / 2 and k3 = e^d - d - 1. Their values agree on average up to
second order, their gradients do not: inside a loss k1 has gradient zero on average, k2 that of the KL, and k3 that of
the KL the other way round, KL(reference || policy).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

LIMIT = 20.0
"""Differences of log-probs are kept within this many nats before they are raised to e, as in verl."""

Estimator = Callable[[Tensor, Tensor], Tensor]
"""From log-probs [N] under policy and reference to an estimate per token [N], nats."""


def k1(policy: Tensor, reference: Tensor) -> Tensor:
    """log pi - log pi_ref: unbiased, of either sign."""
    return policy - reference


def k2(policy: Tensor, reference: Tensor) -> Tensor:
    """(log pi - log pi_ref)^2 / 2: biased, never negative; its gradient is the KL's."""
    return 0.5 * (policy - reference).square()


def k3(policy: Tensor, reference: Tensor) -> Tensor:
    """e^d - d - 1, d = log pi_ref - log pi: unbiased and never negative (GRPO, 2402.03300, eq. 4).

    No gradient where |d| > 20. verl also cuts the value off at 10, which d = 2.6 reaches.
    """
    difference = (reference - policy).clamp(-LIMIT, LIMIT)
    return torch.expm1(difference) - difference


@dataclass(frozen=True, slots=True)
class FixedKl:
    """A KL weight that stays as it is."""

    weight: float

    def updated(self, kl: float, num: int) -> FixedKl:
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveKl:
    """A KL weight that moves until the measured KL is the target (Ziegler et al., 1909.08593, section 2.2).

        e = clip((KL - target) / target, -0.2, 0.2)        weight <- weight (1 + e n / max(horizon, n))

    KL is measured on the rollouts of a step: summed over a response's tokens, averaged over the responses. (verl
    averages over the tokens as well, so that its targets are smaller by the length of a response.) n is their number.
    The weight is all the state there is. The paper's step size K_beta = 0.1 is n / horizon.
    """

    weight: float
    target: float
    """Nats a response."""
    horizon: float
    """Responses over which a KL 20 % off or more changes the weight by 20 %, roughly; a step never changes it by more,
    which would turn it negative for a step of many responses."""

    def updated(self, kl: float, num: int) -> AdaptiveKl:
        """The weight for the next step, after `num` responses with the mean `kl`; the same where that is no number."""
        if not math.isfinite(kl):
            return self
        error = min(max((kl - self.target) / self.target, -0.2), 0.2)
        return replace(self, weight=self.weight * (1.0 + error * num / max(self.horizon, num)))


KlController = FixedKl | AdaptiveKl
