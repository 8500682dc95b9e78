"""Online RL's batches and learner: tokens with advantages, through the scoring core and loop that all else uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.models.head import TokenScores
from whet.objectives.loss import Loss
from whet.objectives.policy import PolicyTokens
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
    """[N], the engine's, of the policy itself."""
    units: float
    """Of the objective, those of responses without a gradient included."""
    num_samples: int

    @property
    def num_tokens(self) -> int:
        return self.packed.num_tokens


class PolicyLearner:
    """Any objective of online RL without a value function; the unit is its aggregation's."""

    def __init__(self, learning: PolicyLearning) -> None:
        self._learning = learning

    def units(self, batch: PolicyBatch) -> float:
        return batch.units

    def survey(self, score: Score, batches: Sequence[PolicyBatch], parallel: Parallel) -> None:
        return None

    def loss(self, score: Score, batch: PolicyBatch, surveyed: None = None) -> Loss:
        scores: TokenScores = score(batch.packed, statistics=True)
        own = scores.logprobs
        return self._learning.formula(
            PolicyTokens(
                logprobs=own,
                old_logprobs=own.detach() if batch.old_logprobs is None else batch.old_logprobs,
                advantages=batch.advantages,
                rows=batch.packed.target_rows,
                lengths=batch.lengths,
                reference_logprobs=batch.reference_logprobs,
                sampler_logprobs=batch.sampler_logprobs,
                entropy=scores.entropy,
            )
        )


Measure = Callable[[Packed], Tensor]
"""From a packed row to the log-probs [N] of its targets, without gradient."""


def by_policy(score: Score) -> Measure:
    """The policy's own log-probs as it stands."""

    def measure(packed: Packed) -> Tensor:
        with torch.no_grad():
            logprobs: Tensor = score(packed).logprobs
        return logprobs

    return measure
