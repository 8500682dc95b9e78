"""f-divergences of f-DPO (Wang et al., 2309.16240): what takes the place of the log-ratio in the implicit reward.

With a penalty D_f instead of the reverse KL the reward is beta f'(u) up to a constant, u = pi / pi_ref. Each function
here is f' of that paper's table as a function of the log-ratio r = log u, shifted by a constant so that f'(1) = 0;
only differences of two of them enter a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Slope = Callable[[Tensor], Tensor]
"""f' as a function of the log-ratio."""

MAX_EXPONENT = 30.0
"""Of a gradient of e^44 the squares overflow fp32, and so does its norm. A response e^30 times rarer than under the
reference gets no gradient from these terms."""


def reverse_kl(r: Tensor) -> Tensor:
    """f(u) = u log u, f' = log u: plain DPO."""
    return r


def forward_kl(r: Tensor) -> Tensor:
    """f(u) = -log u, f' = 1 - 1/u."""
    return -torch.expm1((-r).clamp(max=MAX_EXPONENT))


def js(r: Tensor) -> Tensor:
    """Jensen-Shannon: f' = log(2u / (1 + u))."""
    return math.log(2.0) + logsigmoid(r)


def alpha_divergence(r: Tensor, *, alpha: float) -> Tensor:
    """f' = (1 - u^-alpha) / alpha: the reverse KL for alpha -> 0, the forward KL for alpha = 1."""
    return -torch.expm1((-alpha * r).clamp(max=MAX_EXPONENT)) / alpha
