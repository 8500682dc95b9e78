"""From the rewards of responses to the advantages of their tokens.

One number for a whole response (GRPO and its kin), what is still to come after a token (REINFORCE++), or that against a
value function (PPO). Computed once, on all rollouts of a step, without gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whet.objectives.moments import Moments, whiten
from whet.objectives.policy import given
from whet.objectives.sums import row_sums

Baseline = Callable[[Tensor, Tensor], Tensor]
"""From rewards [R] and prompts [R] to advantages [R] (`whet.objectives.advantages`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """R responses to any number of prompts, and their N tokens laid end to end."""

    rewards: Tensor
    """[R] float; NaN where no reward could be had."""
    groups: Tensor
    """[R] int64, the prompt of each response."""
    rows: Tensor
    """[N] int64, ascending, the response of each token."""
    lengths: Tensor
    """[R] int64, tokens of each response, at least one."""
    penalty: Tensor | None = None
    """[N], what each token's reward is reduced by: KL weight times estimate, where the KL is in the reward."""
    values: Tensor | None = None
    """[N], the value of the state before each token, where there is a value function."""

    @property
    def known(self) -> Tensor:
        """[R] bool: the response has a reward."""
        return torch.isfinite(self.rewards)

    @property
    def penalised(self) -> Tensor:
        """[R], rewards less the penalty of all tokens."""
        if self.penalty is None:
            return self.rewards
        return self.rewards - row_sums(self.penalty, self.rows, len(self.rewards)).to(self.rewards)

    def token_rewards(self) -> Tensor:
        """[N], the response's reward at its last token, less each token's penalty."""
        rewards = torch.zeros_like(self.rewards)[self.rows]
        last = self.lengths.cumsum(0) - 1
        rewards[last] = torch.where(self.known, self.rewards, 0.0)
        return rewards if self.penalty is None else rewards - self.penalty.to(rewards)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advantages:
    tokens: Tensor
    """[N], 0 where a response is not kept."""
    rows: Tensor
    """[N] int64."""
    kept: Tensor
    """[R] bool: the responses that may be trained on. The others have no reward (or are not the best, in RAFT) and
    belong into no batch and no count of units."""
    returns: Tensor | None = None
    """[N], the value function's targets."""

    def moments(self) -> Moments:
        """Of the tokens that are kept, to be added over ranks."""
        return Moments.of(self.tokens[self.kept[self.rows]])

    def whitened(self, moments: Moments) -> Advantages:
        """Mean 0 and variance 1 over the tokens that the moments are of; returns stay as they are."""
        return replace(self, tokens=torch.where(self.kept[self.rows], whiten(self.tokens, moments), 0.0))


def response_credit(rollouts: Rollouts, *, baseline: Baseline) -> Advantages:
    """Every token of a response has the response's advantage."""
    values = baseline(rollouts.penalised, rollouts.groups)
    return Advantages(tokens=values[rollouts.rows], rows=rollouts.rows, kept=rollouts.known)


def best_credit(rollouts: Rollouts, *, baseline: Baseline) -> Advantages:
    """The same, and only responses with an advantage above 0 are kept."""
    values = baseline(rollouts.penalised, rollouts.groups)
    return Advantages(tokens=values[rollouts.rows], rows=rollouts.rows, kept=values > 0)


def return_credit(rollouts: Rollouts, *, gamma: float = 1.0) -> Advantages:
    """A token's advantage is what it and the rest of its response earn (REINFORCE++, 2501.03262; to be whitened)."""
    returns = discounted_sums(rollouts.token_rewards(), rollouts.rows, gamma)
    return Advantages(tokens=_of_known(returns, rollouts), rows=rollouts.rows, kept=rollouts.known)


def gae_credit(rollouts: Rollouts, *, gamma: float, lam: float) -> Advantages:
    """Generalised advantage estimation (Schulman et al., 1506.02438, eq. 16), and the returns A + V.

        delta_t = r_t + gamma V_{t+1} - V_t        A_t = sum_l (gamma lam)^l delta_{t+l}

    Behind the last token V is 0: the response has ended. So it is, as in TRL and verl, for one that was cut off at the
    longest length, which calls the limit a part of the task. The advantages are not whitened; verl's are.
    """
    values = given(rollouts.values, "values")
    following = torch.zeros_like(values)
    following[:-1] = torch.where(rollouts.rows[1:] == rollouts.rows[:-1], values[1:], 0.0)
    delta = rollouts.token_rewards().to(values) + gamma * following - values
    advantages = discounted_sums(delta, rollouts.rows, gamma * lam)
    return Advantages(
        tokens=_of_known(advantages, rollouts), rows=rollouts.rows, kept=rollouts.known, returns=advantages + values
    )


def discounted_sums(values: Tensor, rows: Tensor, discount: float) -> Tensor:
    """sum_l discount^l x_{t+l} over the rest of each row, [N] -> [N]; the tokens of a row stand together.

    By doubling: sums over 1, 2, 4, ... tokens, in log2(N) steps over all rows at once.
    """
    sums, step = values, 1
    while step < len(rows):
        same = rows[:-step] == rows[step:]
        if not bool(same.any()):
            break
        later = torch.where(same, discount**step * sums[step:], 0.0)
        sums = torch.cat([sums[:-step] + later, sums[-step:]])
        step *= 2
    return sums


def _of_known(tokens: Tensor, rollouts: Rollouts) -> Tensor:
    return torch.where(rollouts.known[rollouts.rows], tokens, 0.0)
