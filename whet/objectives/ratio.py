"""Importance ratios pi / pi_old of tokens and of whole responses, [N] each: a response's stands at all its tokens.

Where a log-ratio leaves [-20, 20] the ratio is that of the bound and has no gradient, so that nothing overflows;
verl does the same with tokens (its gspo only above, at 10), TRL does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from whet.objectives.kl import LIMIT
from whet.objectives.policy import PolicyTokens
from whet.objectives.sums import row_sums


@dataclass(frozen=True, slots=True)
class Ratio:
    values: Tensor
    """[N], carries the gradient."""
    by_row: bool
    """One number a response."""


RatioOf = Callable[[PolicyTokens], Ratio]


def token_ratio(tokens: PolicyTokens) -> Ratio:
    """rho_t = pi(o_t) / pi_old(o_t): PPO, GRPO, DAPO."""
    return Ratio((tokens.logprobs - tokens.old_logprobs).clamp(-LIMIT, LIMIT).exp(), by_row=False)


def sequence_ratio(tokens: PolicyTokens) -> Ratio:
    """s_i = (pi(o_i) / pi_old(o_i))^(1/|o_i|), the geometric mean of a response's rho (GSPO, 2507.18071, eq. 7)."""
    return Ratio(_mean_log_ratio(tokens).clamp(-LIMIT, LIMIT).exp(), by_row=True)


def sequence_token_ratio(tokens: PolicyTokens) -> Ratio:
    """sg[s_i] pi(o_t) / sg[pi(o_t)] (GSPO-token, 2507.18071, eq. 14): the value s_i, the gradient of token t.

    Where the tokens of a response share their advantage the gradient is GSPO's. verl's `gspo` is this one.
    """
    own = tokens.logprobs - tokens.logprobs.detach()
    return Ratio((own + _mean_log_ratio(tokens).detach()).clamp(-LIMIT, LIMIT).exp(), by_row=True)


def response_ratio(tokens: PolicyTokens) -> Ratio:
    """pi(o_i) / pi_old(o_i), the product of a response's rho (TRL's RLOO)."""
    sums = row_sums(tokens.logprobs - tokens.old_logprobs, tokens.rows, tokens.num_rows)
    return Ratio(sums[tokens.rows].clamp(-LIMIT, LIMIT).exp(), by_row=True)


def _mean_log_ratio(tokens: PolicyTokens) -> Tensor:
    sums = row_sums(tokens.logprobs - tokens.old_logprobs, tokens.rows, tokens.num_rows)
    return (sums / tokens.lengths.to(sums))[tokens.rows]
