"""Likelihood of stored responses, weighted by what was stored with them. Unit: prompt.

Two methods of self-rewarding pipelines, which call their files `grpo_training.jsonl` and `gspo_training.jsonl`. They
are neither GRPO nor GSPO: nothing is drawn from the policy, there is no importance ratio and no clip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.objectives.advantages import EPSILON, group_advantages
from whet.objectives.kl import LIMIT
from whet.objectives.loss import Loss, Total


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredLogprobs:
    """R stored responses to any number of prompts; every tensor is [R]."""

    policy: Tensor
    """float32, summed log-prob of each response."""
    reference: Tensor | None
    """The same under the reference; None where no KL is asked for."""
    lengths: Tensor
    """Tokens of each response."""
    groups: Tensor
    """int64, the number of each response's prompt, 0 to G - 1."""
    values: Tensor
    """float: the stored rewards or weights."""
    mean: float = 0.0
    """Mean of the values of the whole training set."""
    std: float = 1.0
    """Their standard deviation."""


Signal = Callable[[ScoredLogprobs], Tensor]
"""From stored rows to the number that each response's log-prob is multiplied by, [R]."""


def reward_weighted(rows: ScoredLogprobs, *, advantage: Signal, kl_weight: float, by_length: bool) -> Loss:
    """-1/K sum_k A_k log pi(y_k|x) + kl_weight * penalty: REINFORCE (Williams 1992) on data the policy did not draw.

    A is the stored reward against a baseline. Where it is negative the likelihood is pushed down without a bound: keep
    the learning rate low, or give the penalty a weight. `by_length` divides each log-prob by its tokens.
    """
    prompts = Prompts.of(rows.groups)
    advantages = advantage(rows)
    losses = prompts.mean(-advantages * _logprobs(rows, by_length))
    metrics = {
        "reward": Total(rows.values.sum(), float(len(rows.values))),
        "advantage_size": Total(advantages.abs().sum(), float(len(rows.values))),
    }
    return _with_penalty(rows, prompts, losses, metrics, kl_weight)


def soft_preference(rows: ScoredLogprobs, *, log_weight: Signal, kl_weight: float, by_length: bool) -> Loss:
    """-sum_k w_k log pi(y_k|x) + kl_weight * penalty, w the softmax of `log_weight` over a prompt's responses.

    A maximum likelihood in which every response of a prompt takes part by its share (reward-weighted regression,
    Peters and Schaal 2007). A prompt with one response is plain SFT on it. `by_length` divides each log-prob by its
    tokens.
    """
    prompts = Prompts.of(rows.groups)
    weights = prompts.softmax(log_weight(rows))
    losses = prompts.sum(-weights * _logprobs(rows, by_length))
    metrics = {"top_weight": Total(prompts.max(weights).sum(), float(prompts.num))}
    return _with_penalty(rows, prompts, losses, metrics, kl_weight)


def raw_reward(rows: ScoredLogprobs) -> Tensor:
    """A = R."""
    return rows.values


def group_advantage(rows: ScoredLogprobs, *, divide_by_std: bool) -> Tensor:
    """A = R - mean of the prompt's rewards [over their standard deviation]; 0 where they are all the same, or one."""
    return group_advantages(rows.values, rows.groups, divide_by_std=divide_by_std)


def dataset_advantage(rows: ScoredLogprobs, *, divide_by_std: bool) -> Tensor:
    """A = R - mean of all rewards of the training set [over their standard deviation]."""
    centred = rows.values - rows.mean
    return centred / (rows.std + EPSILON) if divide_by_std else centred


def tempered_rewards(rows: ScoredLogprobs, *, temperature: float) -> Tensor:
    """R / T: the weights are softmax(R / T)."""
    return rows.values / temperature


def tempered_weights(rows: ScoredLogprobs, *, temperature: float) -> Tensor:
    """log(w) / T: the weights are w^(1/T), scaled to sum to one. 1 keeps the stored ones."""
    return rows.values.log() / temperature


@dataclass(frozen=True, slots=True)
class Prompts:
    """Sums over the responses of each of G prompts, without a loop."""

    index: Tensor
    """[R] int64, the prompt of each response."""
    sizes: Tensor
    """[G] int64, responses of each prompt."""

    @staticmethod
    def of(groups: Tensor) -> Prompts:
        return Prompts(groups, groups.bincount())

    @property
    def num(self) -> int:
        return len(self.sizes)

    def sum(self, values: Tensor) -> Tensor:
        """[R] -> [G]."""
        return values.new_zeros(self.num).index_add(0, self.index, values)

    def mean(self, values: Tensor) -> Tensor:
        """[R] -> [G]."""
        return self.sum(values) / self.sizes

    def max(self, values: Tensor) -> Tensor:
        """[R] -> [G]."""
        return values.new_empty(self.num).scatter_reduce(0, self.index, values, "amax", include_self=False)

    def softmax(self, logits: Tensor) -> Tensor:
        """[R] -> [R], summing to one over each prompt. Minus infinity is a weight of zero."""
        exponentials = torch.exp(logits - self.max(logits)[self.index])
        return exponentials / self.sum(exponentials)[self.index]


def _logprobs(rows: ScoredLogprobs, by_length: bool) -> Tensor:
    return rows.policy / rows.lengths if by_length else rows.policy


def _with_penalty(
    rows: ScoredLogprobs, prompts: Prompts, losses: Tensor, metrics: dict[str, Total], kl_weight: float
) -> Loss:
    """Adds kl_weight times the mean over each prompt's responses of e^d - d - 1, d = log(pi_ref / pi) / tokens.

    That is the estimator k3 on the mean token. It is a penalty, not the KL: the responses are not the policy's own. It
    is smallest at the reference and grows on both sides of it, and the mean keeps e^d in range for long responses.
    """
    metrics["logps"] = Total(rows.policy.detach().sum(), float(len(rows.policy)))
    if rows.reference is None:
        return Loss(losses.sum(), metrics)
    d = ((rows.reference - rows.policy) / rows.lengths).clamp(-LIMIT, LIMIT)
    penalty = prompts.mean(torch.expm1(d) - d)
    metrics["kl"] = Total(penalty.detach().sum(), float(prompts.num))
    return Loss((losses + kl_weight * penalty).sum(), metrics)
