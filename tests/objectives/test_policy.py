"""Surrogates of online RL by hand: two responses of two and three tokens (see `tokens`)."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.objectives.tokens import RATIOS, means, random_tokens, tensor, tokens
from whet.objectives.aggregation import Aggregation, Constant, SequenceMean, SequenceSum, TokenMean
from whet.objectives.policy import PolicyTokens, policy_loss
from whet.objectives.ratio import response_ratio, sequence_ratio, sequence_token_ratio, token_ratio
from whet.objectives.surrogate import clipped, clipped_weights, likelihood, response_clipped

CLIP = partial(clipped, ratio=token_ratio, clip_low=0.2, clip_high=0.2)
RESPONSE = partial(response_clipped, clip_low=0.2, clip_high=0.2)


def gradient(given: PolicyTokens, **settings) -> torch.Tensor:
    return torch.autograd.grad(policy_loss(given, **settings).total, given.logprobs)[0]


def test_clipped_surrogate() -> None:
    # good: min(1.5, 1.2) = 1.2, 1; bad: max(0.5, 0.8) = 0.8, max(2, 1.2) = 2, 1
    given = tokens()
    torch.testing.assert_close(CLIP(given).losses, tensor(-1.2, -1.0, 0.8, 2.0, 1.0))
    loss = policy_loss(given, surrogate=CLIP, aggregation=TokenMean())
    assert loss.total.item() == pytest.approx(1.6, abs=1e-12)
    found = means(loss)
    assert found["clip_ratio/low_mean"] == pytest.approx(1 / 5)
    assert found["clip_ratio/high_mean"] == pytest.approx(1 / 5)
    assert found["clip_ratio/region_mean"] == pytest.approx(2 / 5)
    assert found["policy_ratio"] == pytest.approx(6 / 5)
    assert found["policy_loss"] == pytest.approx(1.6 / 5)
    # the gradient of a term is -rho A, and nothing where the clip has taken over
    torch.testing.assert_close(
        gradient(given, surrogate=CLIP, aggregation=TokenMean()), tensor(0.0, -1.0, 0.0, 2.0, 1.0)
    )


def test_clip_higher_gives_the_upper_side_more_room() -> None:
    given = tokens()
    wide = partial(clipped, ratio=token_ratio, clip_low=0.2, clip_high=0.6)
    torch.testing.assert_close(wide(given).losses, tensor(-1.5, -1.0, 0.8, 2.0, 1.0))
    assert gradient(given, surrogate=wide, aggregation=TokenMean())[0].item() == pytest.approx(-1.5)


def test_two_sided_clip_bounds_a_bad_token_that_ran_away() -> None:
    given = tokens()
    bounded = partial(CLIP, clip_delta=1.5)
    torch.testing.assert_close(bounded(given).losses, tensor(-1.2, -1.0, 0.8, 1.5, 1.0))
    assert gradient(given, surrogate=bounded, aggregation=TokenMean())[3].item() == 0.0


@pytest.mark.parametrize(
    ("aggregation", "total", "units"),
    [
        (SequenceMean(), -2.2 / 2 + 3.8 / 3, 2.0), (TokenMean(), 1.6, 5.0), (SequenceSum(), 1.6, 2.0),
        (Constant(max_tokens=10), 1.6, 20.0),
    ],
)  # fmt: skip
def test_aggregations(aggregation: Aggregation, total: float, units: float) -> None:
    assert policy_loss(tokens(), surrogate=CLIP, aggregation=aggregation).total.item() == pytest.approx(total)
    assert aggregation.units(2, 5) == units


def test_ratios() -> None:
    given = tokens()
    torch.testing.assert_close(token_ratio(given).values, tensor(*RATIOS))
    mean = math.sqrt(1.5)
    for ratio in (sequence_ratio, sequence_token_ratio):
        torch.testing.assert_close(ratio(given).values, tensor(mean, mean, 1, 1, 1))
    torch.testing.assert_close(response_ratio(given).values, tensor(1.5, 1.5, 1, 1, 1))


def test_gspo() -> None:
    # s = sqrt(1.5) = 1.2247 and 1; d s_i / d log pi(o_t) = s_i / |o_i|
    given, s = tokens(), math.sqrt(1.5)
    wide = partial(clipped, ratio=sequence_ratio, clip_low=0.3, clip_high=0.3)
    loss = policy_loss(given, surrogate=wide, aggregation=SequenceMean())
    assert loss.total.item() == pytest.approx(-s + 1.0, abs=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(loss.total, given.logprobs)[0], tensor(-s / 2, -s / 2, 1 / 3, 1 / 3, 1 / 3)
    )
    tight = policy_loss(given, surrogate=partial(wide, clip_high=0.2), aggregation=SequenceMean())
    assert tight.total.item() == pytest.approx(-1.2 + 1.0, abs=1e-12)
    assert means(tight)["clip_ratio/high_mean"] == pytest.approx(1 / 2)  # one response of two
    assert means(tight)["policy_ratio"] == pytest.approx((s + 1) / 2)


def test_gspo_token_is_gspo_where_a_response_has_one_advantage() -> None:
    given = random_tokens((3, 1, 4), 0)
    settings = {"clip_low": 0.1, "clip_high": 0.15}
    one = policy_loss(given, surrogate=partial(clipped, ratio=sequence_ratio, **settings), aggregation=SequenceMean())
    two = policy_loss(
        given, surrogate=partial(clipped, ratio=sequence_token_ratio, **settings), aggregation=SequenceMean()
    )
    torch.testing.assert_close(one.total, two.total)
    torch.testing.assert_close(
        torch.autograd.grad(one.total, given.logprobs)[0], torch.autograd.grad(two.total, given.logprobs)[0]
    )


def test_gspo_token_gives_each_token_its_own_advantage() -> None:
    given = tokens(advantages=tensor(1, 3, -1, -1, -2))
    free = partial(clipped, ratio=sequence_token_ratio, clip_low=1.0, clip_high=9.0)
    s = math.sqrt(1.5)
    torch.testing.assert_close(
        gradient(given, surrogate=free, aggregation=SequenceMean()), tensor(-s / 2, -3 * s / 2, 1 / 3, 1 / 3, 2 / 3)
    )


def test_gspo_on_policy_is_the_sequence_mean() -> None:
    """While the policy has not moved, GSPO's gradient is GRPO's, and both are REINFORCE with the mean log-prob."""
    given = random_tokens((3, 1, 4), 1)
    given = replace(given, old_logprobs=given.logprobs.detach())
    tight = {"clip_low": 3e-4, "clip_high": 4e-4}
    gspo = gradient(given, surrogate=partial(clipped, ratio=sequence_ratio, **tight), aggregation=SequenceMean())
    grpo = gradient(given, surrogate=CLIP, aggregation=SequenceMean())
    torch.testing.assert_close(gspo, grpo)
    torch.testing.assert_close(gspo, -given.advantages / given.row_lengths)


def test_rloo() -> None:
    # products 1.5 and 1: -min(1.5, 1.2) + 1; the second response has the gradient -A rho at each of its tokens
    given = tokens()
    loss = policy_loss(given, surrogate=RESPONSE, aggregation=SequenceSum())
    assert loss.total.item() == pytest.approx(-0.2, abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss.total, given.logprobs)[0], tensor(0, 0, 1, 1, 1))
    assert means(loss)["clip_ratio/high_mean"] == pytest.approx(1 / 2)
    still = replace(given, old_logprobs=given.logprobs.detach())
    torch.testing.assert_close(gradient(still, surrogate=RESPONSE, aggregation=SequenceSum()), -still.advantages)


def test_cispo_clips_the_weight_and_never_the_gradient() -> None:
    # weights min(rho, 1.4): 1.4, 1, 0.5, 1.4, 1
    given = tokens()
    open_below = partial(clipped_weights, clip_low=None, clip_high=0.4)
    weights = tensor(1.4, 1.0, 0.5, 1.4, 1.0)
    loss = policy_loss(given, surrogate=open_below, aggregation=TokenMean())
    assert loss.total.item() == pytest.approx(1.4 * 1 + 1 * 2 - 0.5 * 3 - 1.4 * 0.5 - 1 * 1.5, abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss.total, given.logprobs)[0], -weights * given.advantages)
    assert means(loss)["cispo_clip_ratio"] == pytest.approx(1 / 5)
    bounded = partial(clipped_weights, clip_low=0.2, clip_high=0.4)
    assert gradient(given, surrogate=bounded, aggregation=TokenMean())[2].item() == pytest.approx(0.8)


def test_likelihood_of_the_best() -> None:
    given = tokens(advantages=tensor(1, 1, 0, 0, 0))
    loss = policy_loss(given, surrogate=likelihood, aggregation=TokenMean())
    assert loss.total.item() == pytest.approx(3.0)
    torch.testing.assert_close(torch.autograd.grad(loss.total, given.logprobs)[0], tensor(-1, -1, 0, 0, 0))
