"""From responses to tokens: GAE, rewards to come, whitening, each by hand and against a plain loop."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from tests.objectives.tokens import tensor
from whet.objectives.advantages import best_of_group, group_advantages, leave_one_out
from whet.objectives.credit import (
    Rollouts,
    best_credit,
    discounted_sums,
    gae_credit,
    response_credit,
    return_credit,
)
from whet.objectives.moments import Moments, whiten

ROWS = torch.tensor([0, 0, 0, 1, 1])
GROUP = partial(group_advantages, divide_by_std=False)


def rollouts(rewards: tuple[float, float] = (1.0, -1.0), **more: torch.Tensor) -> Rollouts:
    """Two responses to one prompt, of three and of two tokens."""
    return Rollouts(
        rewards=tensor(*rewards), groups=torch.tensor([0, 0]), rows=ROWS, lengths=torch.tensor([3, 2]), **more
    )


def test_gae_by_hand() -> None:
    # gamma 0.9, lambda 0.5; V = 0.5, 0.2, 0.1 | 0.3, -0.4; rewards 0, 0, 1 | 0, -1
    # delta = 0.9*0.2 - 0.5, 0.9*0.1 - 0.2, 1 - 0.1 | 0.9*-0.4 - 0.3, -1 + 0.4
    values = tensor(0.5, 0.2, 0.1, 0.3, -0.4)
    found = gae_credit(rollouts(values=values), gamma=0.9, lam=0.5)
    last, second = 0.9, -0.11 + 0.45 * 0.9
    expected = tensor(-0.32 + 0.45 * second, second, last, -0.66 + 0.45 * -0.6, -0.6)
    torch.testing.assert_close(found.tokens, expected)
    torch.testing.assert_close(found.returns, expected + values)


def test_gae_with_lambda_one_is_return_less_value() -> None:
    values = tensor(0.5, 0.2, 0.1, 0.3, -0.4)
    penalty = tensor(0.1, 0.2, 0.3, 0.4, 0.5)
    found = gae_credit(rollouts(values=values, penalty=penalty), gamma=1.0, lam=1.0)
    returns = tensor(0.4, 0.5, 0.7, -1.9, -1.5)  # 1 - (0.1 + 0.2 + 0.3) ... | -1 - 0.9, -1 - 0.5
    torch.testing.assert_close(found.returns, returns)
    torch.testing.assert_close(found.tokens, returns - values)


@pytest.mark.parametrize("lengths", [(1,), (7, 1, 1, 12, 5), (33, 2)])
def test_discounted_sums_are_those_of_a_loop(lengths: tuple[int, ...]) -> None:
    num = sum(lengths)
    rows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    values = torch.randn(num, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for discount in (0.0, 0.7, 1.0):
        expected = values.clone()
        for t in reversed(range(num - 1)):
            if rows[t] == rows[t + 1]:
                expected[t] = values[t] + discount * expected[t + 1]
        torch.testing.assert_close(discounted_sums(values, rows, discount), expected)


def test_every_token_has_its_responses_advantage() -> None:
    found = response_credit(rollouts(), baseline=GROUP)
    assert found.tokens.tolist() == [1, 1, 1, -1, -1] and found.kept.tolist() == [True, True]


def test_kl_in_the_reward_of_a_response() -> None:
    # 1 - 0.6 and -1 - 0.9: left out of one another 2.3 and -2.3
    penalty = tensor(0.1, 0.2, 0.3, 0.4, 0.5)
    found = response_credit(rollouts(penalty=penalty), baseline=leave_one_out)
    torch.testing.assert_close(found.tokens, tensor(2.3, 2.3, 2.3, -2.3, -2.3))


def test_rewards_to_come() -> None:
    found = return_credit(rollouts(penalty=tensor(0.1, 0.2, 0.3, 0.4, 0.5)))
    torch.testing.assert_close(found.tokens, tensor(0.4, 0.5, 0.7, -1.9, -1.5))


def test_only_the_best_is_kept() -> None:
    found = best_credit(rollouts((1.0, 2.0)), baseline=best_of_group)
    assert found.tokens.tolist() == [0, 0, 0, 1, 1] and found.kept.tolist() == [False, True]


@pytest.mark.parametrize("rewards", [(math.nan, -1.0), (1.0, math.nan), (math.inf, 2.0)])
def test_what_has_no_reward_is_not_kept(rewards: tuple[float, float]) -> None:
    given = rollouts(rewards, values=tensor(0.5, 0.2, 0.1, 0.3, -0.4), penalty=tensor(0.1, 0.2, 0.3, 0.4, 0.5))
    missing = 0 if not math.isfinite(rewards[0]) else 1
    for found in (
        gae_credit(given, gamma=1.0, lam=0.95), return_credit(given), response_credit(given, baseline=GROUP),
    ):  # fmt: skip
        assert found.kept.tolist() == [row != missing for row in (0, 1)]
        assert found.tokens[missing == ROWS].abs().max() == 0.0
        assert torch.isfinite(found.tokens).all() and (found.returns is None or torch.isfinite(found.returns).all())
        assert found.moments().count == float((missing != ROWS).sum())
        white = found.whitened(found.moments())
        assert white.tokens[missing == ROWS].abs().max() == 0.0


def test_moments_add_over_ranks() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 3.0
    parts = Moments.of(values[:7]) + Moments.of(values[7:31]) + Moments.of(values[31:])
    assert parts.mean == pytest.approx(float(values.mean()))
    assert parts.variance == pytest.approx(float(values.var()))
    white = whiten(values, parts, epsilon=0.0)
    assert float(white.mean()) == pytest.approx(0.0, abs=1e-12) and float(white.var()) == pytest.approx(1.0)


def test_moments_of_few() -> None:
    assert (Moments.of(tensor()).mean, Moments.of(tensor()).variance) == (0.0, 0.0)
    assert (Moments.of(tensor(3.0)).mean, Moments.of(tensor(3.0)).variance) == (3.0, 0.0)


def test_equal_rewards_whiten_to_nothing() -> None:
    found = return_credit(rollouts((0.1, 0.1)))
    assert float(found.whitened(found.moments()).tokens.abs().max()) < 1e-9


def test_a_long_response_counts_for_its_tokens_in_the_batch() -> None:
    # 1, 1, 1, -1, -1: mean 0.2, variance (3 * 0.64 + 2 * 1.44) / 4 = 1.2
    found = return_credit(rollouts())
    white = found.whitened(found.moments())
    torch.testing.assert_close(white.tokens, tensor(0.8, 0.8, 0.8, -1.2, -1.2) / math.sqrt(1.2), rtol=1e-7, atol=0)
