"""The loss of online RL: a surrogate of the policy gradient, with a KL term, an entropy bonus and a correction.

    loss = sum over tokens of w_t s_t + kl_weight kl_t - entropy_weight H_t,        added up by an `Aggregation`

s_t is the surrogate (`whet.objectives.surrogate`), w_t what makes up for a sampler that is not quite the trainer
(`whet.objectives.importance`), kl_t an estimator (`whet.objectives.kl`), H_t the entropy. TRL and verl weigh s_t alone
as well. All terms share one aggregation, as in verl; TRL's entropy bonus is always a mean over tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from whet.objectives.aggregation import Aggregation
from whet.objectives.kl import Estimator
from whet.objectives.loss import Loss, Total


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTokens:
    """N response tokens of R responses, laid end to end: those that are trained, and none of a failed rollout.

    Log-probs are those of the policy at the rollouts' temperature, nothing cut off, unless said otherwise.
    """

    logprobs: Tensor
    """[N], carries the gradient."""
    old_logprobs: Tensor
    """[N], of the policy that the rollouts were drawn from, by the trainer's arithmetic; `logprobs.detach()` while it
    has not moved."""
    advantages: Tensor
    """[N]."""
    rows: Tensor
    """[N] int64, ascending, the response of each token, 0 to R - 1."""
    lengths: Tensor
    """[R] int64, tokens of each response, at least one."""
    reference_logprobs: Tensor | None = None
    """[N]; None where no KL is asked for."""
    sampler_logprobs: Tensor | None = None
    """[N], of the distribution that the tokens were drawn from, by the engine's arithmetic."""
    entropy: Tensor | None = None
    """[N], nats; has to carry a gradient where there is an entropy bonus."""

    @property
    def num_rows(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        return len(self.rows)

    @property
    def row_lengths(self) -> Tensor:
        """[N] in the type of the log-probs: the length of each token's response."""
        return self.lengths.to(self.logprobs)[self.rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a surrogate makes of N tokens."""

    losses: Tensor
    """[N]."""
    ratio: Tensor
    """[N], the importance ratio before any clip; carries the gradient."""
    metrics: Mapping[str, Total]


@dataclass(frozen=True, slots=True)
class Weights:
    """Factors of the surrogate's terms, without gradient."""

    values: Tensor
    """[N]."""
    metrics: Mapping[str, Total]


@dataclass(frozen=True, slots=True, kw_only=True)
class KlTerm:
    """A KL to the reference inside the loss."""

    estimator: Estimator
    weight: float
    by_ratio: bool = False
    """Multiply by the importance ratio, gradient included, which makes up for tokens that an older policy drew
    (DeepSeek-V3.2, 2512.02556). TRL does by default (`use_bias_correction_kl`); GRPO's paper and verl do not."""


Surrogate = Callable[[PolicyTokens], Terms]
Correction = Callable[[PolicyTokens], Weights]
PolicyFormula = Callable[[PolicyTokens], Loss]


def policy_loss(
    tokens: PolicyTokens,
    *,
    surrogate: Surrogate,
    aggregation: Aggregation,
    kl: KlTerm | None = None,
    entropy_weight: float = 0.0,
    correction: Correction | None = None,
) -> Loss:
    """The sum over the aggregation's unit. Raises ValueError where a term is asked for whose numbers are missing."""
    terms = surrogate(tokens)
    losses, metrics = terms.losses, {**_drift(tokens), **terms.metrics}
    if correction is not None:
        weights = correction(tokens)
        losses, metrics = losses * weights.values, {**metrics, **weights.metrics}
    metrics["policy_loss"] = Total(
        aggregation.total(losses.detach(), tokens.rows, tokens.lengths),
        aggregation.units(tokens.num_rows, tokens.num_tokens),
    )
    if kl is not None:
        estimate = kl.estimator(tokens.logprobs, given(tokens.reference_logprobs, "reference_logprobs"))
        metrics["kl"] = Total(estimate.detach().sum(), float(tokens.num_tokens))
        losses = losses + kl.weight * (estimate * terms.ratio if kl.by_ratio else estimate)
    if tokens.entropy is not None:
        metrics["entropy"] = Total(tokens.entropy.detach().sum(), float(tokens.num_tokens))
    if entropy_weight:
        losses = losses - entropy_weight * given(tokens.entropy, "entropy")
    return Loss(aggregation.total(losses, tokens.rows, tokens.lengths), metrics)


def given(values: Tensor | None, name: str) -> Tensor:
    """The tensor, which the caller had to fill in. Raises ValueError where he did not."""
    if values is None:
        raise ValueError(f"the objective needs {name}")
    return values


def _drift(tokens: PolicyTokens) -> dict[str, Total]:
    """How far the policy has moved from the one that drew the tokens, and how far that one was from the sampler.

    The first is k2 of the two (TRL's PPO calls it so), the second a mean size, nats; both under TRL's names.
    """
    num, old = float(tokens.num_tokens), tokens.old_logprobs.detach()
    metrics = {"policy/approxkl_avg": Total(0.5 * (tokens.logprobs.detach() - old).square().sum(), num)}
    if tokens.sampler_logprobs is not None:
        difference = (old - tokens.sampler_logprobs).abs().sum()
        metrics["sampling/sampling_logp_difference/mean"] = Total(difference, num)
    return metrics
