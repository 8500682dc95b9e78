"""Online RL's batches and learner: tokens with advantages, through the scoring core and loop that all else uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.models.head import TokenScores
from whet.models.mode import evaluating
from whet.models.scoring import TokenScorer
from whet.models.value import PolicyScorer, PolicyScores, Values
from whet.objectives.loss import Loss, Total
from whet.objectives.policy import PolicyTokens
from whet.objectives.value import ValueTokens
from whet.schema.packed import Packed
from whet.train.bind_policy import PolicyLearning
from whet.train.learners import Score
from whet.train.parallel import Parallel


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyBatch:
    """Some prompts of a step with some of their R responses, N tokens in all."""

    packed: Packed
    lengths: Tensor
    """[R] int64, tokens of each response."""
    advantages: Tensor
    """[N]."""
    old_logprobs: Tensor | None
    """[N], of the policy as it was when the round began; None while it has not moved."""
    reference_logprobs: Tensor | None
    """[N]; None where no KL is asked for."""
    sampler_logprobs: Tensor
    """[N], by the engine, of the distribution that the tokens were drawn from."""
    old_values: Tensor | None = None
    """[N], of the value function when the round began; None where there is none."""
    returns: Tensor | None = None
    """[N], its targets."""
    units: float
    """Of the objective, those of responses without a gradient included."""
    num_samples: int

    @property
    def num_tokens(self) -> int:
        return self.packed.num_tokens


class PolicyLearner:
    """Any objective of online RL; the unit is its aggregation's.

    With a value function (PPO) the scorer gives values beside the log-probs, and the loss has their term; policy and
    value then share a unit, the token.
    """

    def __init__(self, learning: PolicyLearning, *, temperature: float, entropy_gradient: bool = False) -> None:
        """`temperature` is the rollouts': the distribution that is sampled from is the one that is trained."""
        self._learning, self._temperature, self._entropy_gradient = learning, temperature, entropy_gradient

    def units(self, batch: PolicyBatch) -> float:
        return batch.units

    def survey(self, score: Score, batches: Sequence[PolicyBatch], parallel: Parallel) -> None:
        return None

    def loss(self, score: Score, batch: PolicyBatch, surveyed: None = None) -> Loss:
        scored: TokenScores | PolicyScores = score(
            batch.packed, statistics=True, temperature=self._temperature, entropy_gradient=self._entropy_gradient
        )
        tokens = scored.tokens if isinstance(scored, PolicyScores) else scored
        loss = self._learning.formula(
            PolicyTokens(
                logprobs=tokens.logprobs,
                old_logprobs=tokens.logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs,
                advantages=batch.advantages,
                rows=batch.packed.target_rows,
                lengths=batch.lengths,
                reference_logprobs=batch.reference_logprobs,
                sampler_logprobs=batch.sampler_logprobs,
                entropy=tokens.entropy,
            )
        )
        # Those without a gradient count for its mean as they do for the loss.
        surrogate = Total(loss.metrics["policy_loss"].total, batch.units)
        loss = Loss(loss.total, {**loss.metrics, "policy_loss": surrogate})
        return self._with_values(loss, scored.values, batch) if isinstance(scored, PolicyScores) else loss

    def _with_values(self, loss: Loss, values: Values, batch: PolicyBatch) -> Loss:
        assert self._learning.value is not None and batch.old_values is not None and batch.returns is not None
        own = self._learning.value(
            ValueTokens(values=values.tokens, old_values=batch.old_values, returns=batch.returns)
        )
        return Loss(loss.total + self._learning.value_weight * own.total, {**loss.metrics, **own.metrics})


Measure = Callable[[Packed], Tensor]
"""From a packed row to a number for each of its targets [N], without gradient."""


def policy_logprobs(scorer: TokenScorer, temperature: float) -> Measure:
    """The policy's own log-probs as it stands."""

    def measure(packed: Packed) -> Tensor:
        with torch.no_grad(), evaluating(scorer):
            logprobs: Tensor = scorer(packed, temperature=temperature).logprobs
        return logprobs

    return measure


def policy_values(scorer: PolicyScorer) -> Measure:
    """The value function's values as it stands."""

    def measure(packed: Packed) -> Tensor:
        with torch.no_grad(), evaluating(scorer):
            return scorer.values(packed).tokens

    return measure
