"""Learners: how a batch becomes a loss. They know the model and the batch, and take the formula as a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from whet.data.batch import PairBatch, TokenBatch
from whet.models.scoring import token_logprobs
from whet.objectives.loss import Loss
from whet.objectives.pairwise import PairLogprobs

Batch = TypeVar("Batch", contravariant=True)


class Learner(Protocol[Batch]):
    """One objective on one batch shape."""

    def units(self, batch: Batch) -> float:
        """How many of the formula's units the batch holds; known before any forward pass."""
        ...

    def loss(self, model: torch.nn.Module, batch: Batch) -> Loss:
        """The formula's sum over the batch."""
        ...


class TokenLearner:
    """Likelihood objectives: unit is the weighted token."""

    def __init__(self, formula: Callable[[Tensor, Tensor], Loss]) -> None:
        self._formula = formula

    def units(self, batch: TokenBatch) -> float:
        return float(batch.weights.sum())

    def loss(self, model: torch.nn.Module, batch: TokenBatch) -> Loss:
        logprobs = token_logprobs(model, batch.input_ids, batch.attention_mask, batch.target_mask)
        return self._formula(logprobs, batch.weights)


class PairLearner:
    """Preference objectives: unit is the pair.

    `reference` is [num_pairs, 2], the reference policy's summed log-probs of every pair (chosen, rejected).
    """

    def __init__(self, formula: Callable[[PairLogprobs], Loss], reference: Tensor) -> None:
        self._formula, self._reference = formula, reference

    def units(self, batch: PairBatch) -> float:
        return float(batch.num_samples)

    def loss(self, model: torch.nn.Module, batch: PairBatch) -> Loss:
        policy = response_logprobs(model, batch)
        num = batch.num_samples
        reference = self._reference[list(batch.indices)].to(policy.device)
        return self._formula(
            PairLogprobs(
                chosen=policy[:num],
                rejected=policy[num:],
                reference_chosen=reference[:, 0],
                reference_rejected=reference[:, 1],
                chosen_length=batch.lengths[:num],
                rejected_length=batch.lengths[num:],
            )
        )


def response_logprobs(model: torch.nn.Module, batch: PairBatch) -> Tensor:
    """Summed log-prob of each response, [2P] in the batch's row order."""
    logprobs = token_logprobs(model, batch.input_ids, batch.attention_mask, batch.target_mask)
    rows = torch.repeat_interleave(torch.arange(len(batch.lengths), device=logprobs.device), batch.lengths)
    return torch.zeros(len(batch.lengths), device=logprobs.device).index_add(0, rows, logprobs)
