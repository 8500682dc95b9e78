"""What makes up for a sampler whose arithmetic is not the trainer's: pi_old / pi_sampler, kept in bounds.

The engine and the trainer give the same token slightly different probabilities, so that training is off-policy without
anybody having wanted it. The ratio of the two is unbiased over whole responses and has much variance there; over tokens
it is the other way round.

    token, truncate        min(r_t, 2)                    Yao et al. 2025, "Your efficient RL framework secretly ..."
    token, mask            r_t within [0.5, 5], else 0    IcePop (Ling team, 2025)
    sequence, truncate     min(r_i, C), C 2 to 10         verl's default, C = 2
    sequence, mask         r_i up to C, else 0            Liu et al. 2025, "When speed kills stability"; TRL: C = 3
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from whet.objectives.kl import LIMIT
from whet.objectives.loss import Total
from whet.objectives.policy import PolicyTokens, Weights, given
from whet.objectives.sums import row_sums

Beyond = Literal["truncate", "mask"]
"""What becomes of a ratio beyond its bounds: it takes the bound's value, or its tokens are left out."""


def token_weights(tokens: PolicyTokens, *, beyond: Beyond, cap: float, floor: float = 0.0) -> Weights:
    """r_t = pi_old(o_t) / pi_sampler(o_t), without gradient."""
    found, outside = _bounded(_difference(tokens), beyond, cap, floor)
    return Weights(found, _metrics(found, outside))


def sequence_weights(tokens: PolicyTokens, *, beyond: Beyond, cap: float, floor: float = 0.0) -> Weights:
    """r_i = the product of a response's r_t, at each of its tokens, without gradient."""
    products = row_sums(_difference(tokens), tokens.rows, tokens.num_rows)
    found, outside = _bounded(products, beyond, cap, floor)
    return Weights(found[tokens.rows], _metrics(found, outside))


def _difference(tokens: PolicyTokens) -> Tensor:
    return (tokens.old_logprobs - given(tokens.sampler_logprobs, "sampler_logprobs")).detach()


def _bounded(log_ratio: Tensor, beyond: Beyond, cap: float, floor: float) -> tuple[Tensor, Tensor]:
    """The ratios within their bounds, and which of them were beyond."""
    ratio = log_ratio.clamp(-LIMIT, LIMIT).exp()
    outside = (ratio > cap) | (ratio < floor)
    match beyond:
        case "truncate":
            return ratio.clamp(floor, cap), outside
        case "mask":
            return torch.where(outside, 0.0, ratio), outside


def _metrics(ratios: Tensor, outside: Tensor) -> dict[str, Total]:
    """TRL's name; `beyond` is the share of ratios that left their bounds."""
    num = float(len(ratios))
    return {
        "sampling/importance_sampling_ratio/mean": Total(ratios.sum(), num),
        "sampling/importance_sampling_ratio/beyond": Total(outside.to(ratios.dtype).sum(), num),
    }
