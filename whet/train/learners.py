"""Learners: how a batch becomes a loss. They know the shape of the batch and take scorer and formula as functions.

Some formulas need to know the whole optimiser step before its first backward pass (a KL estimate, an order over all
pairs): `survey` measures that without gradient, and `loss` gets it with every micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from whet.data.batch import GroupBatch, RankingBatch, RatingBatch, TokenBatch
from whet.models.head import TokenScores
from whet.objectives.loss import Loss, Total
from whet.objectives.pairwise import PairLogprobs
from whet.objectives.ranking import RankedScores
from whet.objectives.sums import row_sums
from whet.objectives.unpaired import RatingLogprobs
from whet.objectives.weighted import ScoredLogprobs
from whet.train.bind import PairObjective, RatingObjective, ScoredObjective
from whet.train.parallel import Parallel
from whet.train.reference import Reference

Batch = TypeVar("Batch", contravariant=True)
Score = Callable[..., Any]
"""A scorer of `whet.models.scoring`, or the data-parallel wrapper around it."""


class Learner(Protocol[Batch]):
    """One objective on one batch shape."""

    def units(self, batch: Batch) -> float:
        """How many of the formula's units the batch holds; known before any forward pass."""
        ...

    def survey(self, score: Score, batches: Sequence[Batch], parallel: Parallel) -> Any:
        """What the formula must know of all micro-batches of a step, on all ranks; None where it need not."""
        ...

    def loss(self, score: Score, batch: Batch, surveyed: Any) -> Loss:
        """The formula's sum over the batch."""
        ...


class TokenLearner:
    """Likelihood objectives: unit is the weighted token."""

    def __init__(self, formula: Callable[[Tensor, Tensor], Loss]) -> None:
        self._formula = formula

    def units(self, batch: TokenBatch) -> float:
        return float(batch.weights.sum())

    def survey(self, score: Score, batches: Sequence[TokenBatch], parallel: Parallel) -> None:
        return None

    def loss(self, score: Score, batch: TokenBatch, surveyed: None = None) -> Loss:
        scores: TokenScores = score(batch.packed, statistics=True)
        loss = self._formula(scores.logprobs, batch.weights)
        num = float(len(batch.weights))
        metrics = {"mean_token_accuracy": Total(scores.top1.float().sum(), num)}
        if scores.entropy is not None:
            metrics["entropy"] = Total(scores.entropy.sum(), num)
        return Loss(loss.total, {**loss.metrics, **metrics})


@dataclass(frozen=True, slots=True)
class Pairs:
    """P pairs as three tensors [P, 2], chosen first; `indices` [P] says which they are."""

    indices: Tensor
    policy: Tensor
    reference: Tensor
    lengths: Tensor

    @staticmethod
    def none(device: torch.device) -> Pairs:
        """No pairs, of which a rank may have as many."""
        numbers = torch.zeros(0, 2, device=device)
        return Pairs(numbers[:, 0].long(), numbers, numbers, numbers.long())

    def logprobs(self) -> PairLogprobs:
        return PairLogprobs(
            chosen=self.policy[:, 0],
            rejected=self.policy[:, 1],
            reference_chosen=self.reference[:, 0],
            reference_rejected=self.reference[:, 1],
            chosen_length=self.lengths[:, 0],
            rejected_length=self.lengths[:, 1],
        )


@dataclass(frozen=True, slots=True)
class Step:
    """All pairs of a step; `whole` is the formula's value for them where nobody asks for its gradient."""

    pairs: Pairs
    whole: Loss | None


class PairLearner:
    """Preference objectives: unit is the pair. `reference` may be None for formulas without one."""

    def __init__(self, objective: PairObjective, reference: Reference | None) -> None:
        self._objective, self._reference = objective, reference

    def units(self, batch: GroupBatch) -> float:
        return float(batch.num_samples)

    def survey(self, score: Score, batches: Sequence[GroupBatch], parallel: Parallel) -> Step | None:
        """All pairs of the step, for a formula in which they depend on each other."""
        if not self._objective.coupled or (len(batches) == 1 and parallel.world == 1):
            return None
        with torch.no_grad():
            parts = [Pairs.none(parallel.device), *(self._pairs(score, batch) for batch in batches)]
        pairs = Pairs(
            indices=parallel.gather(torch.cat([part.indices for part in parts])),
            policy=parallel.gather(torch.cat([part.policy for part in parts])),
            reference=parallel.gather(torch.cat([part.reference for part in parts])),
            lengths=parallel.gather(torch.cat([part.lengths for part in parts])),
        )
        return Step(pairs, None if torch.is_grad_enabled() else self._objective.formula(pairs.logprobs()))

    def loss(self, score: Score, batch: GroupBatch, surveyed: Step | None = None) -> Loss:
        """The formula's sum over the batch; where the step was surveyed, the batch's share of the step's."""
        if surveyed is None:
            return self._objective.formula(self._pairs(score, batch).logprobs())
        whole = surveyed.whole or self._whole(score, batch, surveyed.pairs)
        share = len(batch.indices) / len(surveyed.pairs.indices)
        total = whole.total + ((share - 1.0) * whole.total).detach()
        metrics = {name: Total(share * metric.total, share * metric.count) for name, metric in whole.metrics.items()}
        return Loss(total, metrics)

    def _whole(self, score: Score, batch: GroupBatch, step: Pairs) -> Loss:
        """The step's pairs, of which only this batch's carry a gradient."""
        pairs = self._pairs(score, batch)
        place = (step.indices[:, None] == pairs.indices[None, :]).long().argmax(dim=0)
        policy = step.policy.index_put((place,), pairs.policy)
        return self._objective.formula(Pairs(step.indices, policy, step.reference, step.lengths).logprobs())

    def _pairs(self, score: Score, batch: GroupBatch) -> Pairs:
        # The reference comes first, while no activations of the policy are held.
        reference = self._reference(batch) if self._reference is not None else torch.zeros(len(batch.lengths))
        policy = response_logprobs(score, batch)
        indices, reference = torch.tensor(batch.indices, device=policy.device), reference.to(policy)
        return Pairs(indices, policy.view(-1, 2), reference.view(-1, 2), batch.lengths.view(-1, 2))


class RatingLearner:
    """Single responses called good or bad: unit is the response. Each half of the batch has a reference of its own."""

    def __init__(self, objective: RatingObjective, reference: Reference, mismatched: Reference) -> None:
        self._objective, self._reference, self._mismatched = objective, reference, mismatched

    def units(self, batch: RatingBatch) -> float:
        return float(batch.num_samples)

    def survey(self, score: Score, batches: Sequence[RatingBatch], parallel: Parallel) -> float:
        """z_0: the mean log-ratio of mismatched responses over the step, at least 0."""
        if not self._objective.needs_kl:
            return 0.0
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in batches:
                ratio = response_logprobs(score, batch.mismatched) - self._mismatched(batch.mismatched)
                total, count = total + float(ratio.double().sum()), count + len(ratio)
        return max(0.0, parallel.sum(total) / max(1.0, parallel.sum(count)))

    def loss(self, score: Score, batch: RatingBatch, surveyed: float) -> Loss:
        reference = self._reference(batch.rated)
        policy = response_logprobs(score, batch.rated)
        return self._objective.formula(
            RatingLogprobs(
                policy=policy,
                reference=reference,
                good=batch.rated.values > 0.5,
                kl=policy.new_tensor(surveyed),
            )
        )


class ScoredLearner:
    """Stored responses with their numbers: unit is the prompt. `moments` are mean and deviation of all numbers."""

    def __init__(self, objective: ScoredObjective, reference: Reference | None, moments: tuple[float, float]) -> None:
        self._objective, self._reference, self._moments = objective, reference, moments

    def units(self, batch: GroupBatch) -> float:
        return float(batch.num_samples)

    def survey(self, score: Score, batches: Sequence[GroupBatch], parallel: Parallel) -> None:
        return None

    def loss(self, score: Score, batch: GroupBatch, surveyed: None = None) -> Loss:
        mean, std = self._moments
        reference = self._reference(batch) if self._reference is not None else None
        return self._objective.formula(
            ScoredLogprobs(
                policy=response_logprobs(score, batch),
                reference=reference,
                lengths=batch.lengths,
                groups=batch.groups,
                values=batch.values,
                mean=mean,
                std=std,
            )
        )


class RankingLearner:
    """Reward models: unit is the prompt."""

    def __init__(self, formula: Callable[[RankedScores], Loss]) -> None:
        self._formula = formula

    def units(self, batch: RankingBatch) -> float:
        return float(batch.num_samples)

    def survey(self, score: Score, batches: Sequence[RankingBatch], parallel: Parallel) -> None:
        return None

    def loss(self, score: Score, batch: RankingBatch, surveyed: None = None) -> Loss:
        scores: Tensor = score(batch.packed)
        return self._formula(
            RankedScores(scores=scores, groups=batch.groups, ranks=batch.ranks, margins=batch.margins)
        )


def response_logprobs(score: Score, batch: GroupBatch) -> Tensor:
    """Summed log-prob of each response, [R]."""
    scores: TokenScores = score(batch.packed)
    return row_sums(scores.logprobs, batch.packed.target_rows, batch.packed.num_rows)
