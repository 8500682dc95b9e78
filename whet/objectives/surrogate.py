"""Surrogates: what is minimised in place of the expected reward, one term a token.

`clip_ratio/...` are shares of what has a ratio of its own (tokens, or responses) where the clip took the gradient away,
counted as TRL does: low, a ratio below 1 - clip_low whose advantage is negative; high, one above 1 + clip_high whose
advantage is positive.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from whet.objectives.loss import Total
from whet.objectives.policy import PolicyTokens, Terms
from whet.objectives.ratio import Ratio, RatioOf, response_ratio, token_ratio


def clipped(
    tokens: PolicyTokens, *, ratio: RatioOf, clip_low: float, clip_high: float, clip_delta: float | None = None
) -> Terms:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) (PPO, 1707.06347, eq. 7; two bounds: DAPO, 2503.14476).

    With `clip_delta` rho is first cut off there, which bounds the term where A < 0 and rho has run away (dual clip,
    Ye et al., 1912.09729). It has to exceed 1 + clip_high. TRL calls it `delta`; in verl it is `clip_ratio_c`
    and 3 unless it is raised.
    """
    found = ratio(tokens)
    rho = found.values
    bounded = rho if clip_delta is None else rho.clamp(max=clip_delta)
    low, high = 1.0 - clip_low, 1.0 + clip_high
    losses = -torch.minimum(bounded * tokens.advantages, rho.clamp(low, high) * tokens.advantages)
    too_low, too_high = (rho < low) & (tokens.advantages < 0), (rho > high) & (tokens.advantages > 0)
    metrics = {
        "clip_ratio/low_mean": _mean(too_low, tokens, found),
        "clip_ratio/high_mean": _mean(too_high, tokens, found),
        "clip_ratio/region_mean": _mean(too_low | too_high, tokens, found),
        "policy_ratio": _mean(rho, tokens, found),
    }
    return Terms(losses=losses, ratio=rho, metrics=metrics)


def response_clipped(
    tokens: PolicyTokens, *, clip_low: float, clip_high: float, clip_delta: float | None = None
) -> Terms:
    """The clipped surrogate of whole responses, each spread evenly over its tokens: to be summed over a response.

    RLOO (2402.14740) is plain REINFORCE, which this is as long as the policy has not moved: its gradient is then
    -A grad log pi(o_i). The ratio of the product and its clip are TRL's; verl trains RLOO's advantages by `vanilla`.
    """
    terms = clipped(tokens, ratio=response_ratio, clip_low=clip_low, clip_high=clip_high, clip_delta=clip_delta)
    return replace(terms, losses=terms.losses / tokens.row_lengths)


def clipped_weights(tokens: PolicyTokens, *, clip_low: float | None, clip_high: float) -> Terms:
    """-sg[clip(rho, 1 - clip_low, 1 + clip_high)] A log pi (CISPO, MiniMax-M1, 2506.13585, eq. 4).

    The weight is clipped and never the gradient: every token goes on being learnt. None leaves the lower side open, as
    the paper does. TRL's `epsilon_high` is the bound itself, 1 + clip_high, and it has no lower one; verl's are these.
    """
    found = token_ratio(tokens)
    rho = found.values
    weights = rho.detach().clamp(min=None if clip_low is None else 1.0 - clip_low, max=1.0 + clip_high)
    too_high = (rho > 1.0 + clip_high) & (tokens.advantages > 0)
    metrics = {"cispo_clip_ratio": _mean(too_high, tokens, found), "policy_ratio": _mean(rho, tokens, found)}
    return Terms(losses=-weights * tokens.advantages * tokens.logprobs, ratio=rho, metrics=metrics)


def likelihood(tokens: PolicyTokens) -> Terms:
    """-A log pi: REINFORCE without a ratio; for A = 1 supervised learning of the policy's best responses (RAFT)."""
    found = token_ratio(tokens)
    metrics = {"policy_ratio": _mean(found.values, tokens, found)}
    return Terms(losses=-tokens.advantages * tokens.logprobs, ratio=found.values, metrics=metrics)


def _mean(values: Tensor, tokens: PolicyTokens, ratio: Ratio) -> Total:
    """The mean of [N] over tokens, or over responses where they have one ratio each."""
    numbers = values.detach().to(tokens.logprobs.dtype)
    if not ratio.by_row:
        return Total(numbers.sum(), float(tokens.num_tokens))
    return Total((numbers / tokens.row_lengths).sum(), float(tokens.num_rows))
