"""What holds for every surrogate of online RL: gradients by finite differences, any split of a step, no overflow."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.objectives.tokens import part, random_tokens, tokens
from whet.objectives import kl
from whet.objectives.aggregation import Aggregation, Constant, SequenceMean, SequenceSum, TokenMean
from whet.objectives.importance import sequence_weights, token_weights
from whet.objectives.policy import KlTerm, Surrogate, policy_loss
from whet.objectives.ratio import sequence_ratio, sequence_token_ratio, token_ratio
from whet.objectives.surrogate import clipped, clipped_weights, likelihood, response_clipped

SURROGATES: dict[str, Surrogate] = {
    "token": partial(clipped, ratio=token_ratio, clip_low=0.2, clip_high=0.28, clip_delta=1.6),
    "sequence": partial(clipped, ratio=sequence_ratio, clip_low=0.1, clip_high=0.1),
    "response": partial(response_clipped, clip_low=0.2, clip_high=0.2),
    "likelihood": likelihood,
}


@pytest.mark.parametrize("name", list(SURROGATES))
@pytest.mark.parametrize("by_ratio", [False, True])
def test_gradient_by_finite_differences(name: str, by_ratio: bool) -> None:
    given = random_tokens((3, 1, 4), 3)

    def total(logprobs: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        return policy_loss(
            replace(given, logprobs=logprobs, entropy=entropy),
            surrogate=SURROGATES[name],
            aggregation=SequenceMean(),
            kl=KlTerm(estimator=kl.k3, weight=0.3, by_ratio=by_ratio),
            entropy_weight=0.2,
            correction=partial(token_weights, beyond="truncate", cap=1.2),
        ).total

    torch.autograd.gradcheck(total, (given.logprobs, given.entropy))


@pytest.mark.parametrize("aggregation", [SequenceMean(), TokenMean(), SequenceSum(), Constant(8)])
@pytest.mark.parametrize("name", [*SURROGATES, "gspo_token", "cispo"])
def test_splitting_changes_nothing(name: str, aggregation: Aggregation) -> None:
    """Micro-batches of other responses in another order: totals, gradients, units and metrics add up to the whole."""
    more: dict[str, Surrogate] = {
        "gspo_token": partial(clipped, ratio=sequence_token_ratio, clip_low=0.1, clip_high=0.1),
        "cispo": partial(clipped_weights, clip_low=None, clip_high=0.2),
    }
    settings = {
        "surrogate": {**SURROGATES, **more}[name],
        "aggregation": aggregation,
        "kl": KlTerm(estimator=kl.k3, weight=0.3, by_ratio=True),
        "entropy_weight": 0.2,
        "correction": partial(sequence_weights, beyond="mask", cap=2.0),
    }
    whole = random_tokens((3, 1, 4, 2, 6), 4)
    parts = [part(whole, rows) for rows in ([4, 0], [2], [3, 1])]
    expected, found = policy_loss(whole, **settings), [policy_loss(piece, **settings) for piece in parts]
    torch.testing.assert_close(sum(loss.total for loss in found), expected.total)
    leaves = whole.logprobs, whole.entropy
    for one, two in zip(
        torch.autograd.grad(sum(loss.total for loss in found), leaves),
        torch.autograd.grad(expected.total, leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, two)
    assert sum(aggregation.units(p.num_rows, p.num_tokens) for p in parts) == aggregation.units(5, 16)
    for key, metric in expected.metrics.items():
        assert sum(loss.metrics[key].count for loss in found) == metric.count
        assert float(sum(loss.metrics[key].total for loss in found)) == pytest.approx(float(metric.total)), key


def test_no_advantage_no_gradient() -> None:
    given = random_tokens((3, 1, 4), 5)
    given = replace(given, advantages=torch.zeros_like(given.advantages))
    for surrogate in SURROGATES.values():
        loss = policy_loss(given, surrogate=surrogate, aggregation=SequenceMean())
        assert float(torch.autograd.grad(loss.total, given.logprobs)[0].abs().max()) == 0.0


@pytest.mark.parametrize("gap", [-2000.0, 2000.0])
def test_a_ratio_beyond_all_bounds_is_finite(gap: float) -> None:
    given = tokens()
    given = replace(given, old_logprobs=given.logprobs.detach() + gap, reference_logprobs=given.logprobs.detach() + gap)
    for surrogate in (*SURROGATES.values(), partial(clipped_weights, clip_low=None, clip_high=4.0)):
        loss = policy_loss(
            given, surrogate=surrogate, aggregation=TokenMean(), kl=KlTerm(estimator=kl.k3, weight=1.0, by_ratio=True)
        )
        assert torch.isfinite(loss.total)
        assert torch.isfinite(torch.autograd.grad(loss.total, given.logprobs)[0]).all()
