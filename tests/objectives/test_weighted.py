"""Stored rewards and weights by hand: two prompts, with three responses and with one."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from tests.objectives.pairs import means
from whet.objectives.weighted import (
    ScoredLogprobs,
    dataset_advantage,
    group_advantage,
    raw_reward,
    reward_weighted,
    soft_preference,
    tempered_rewards,
    tempered_weights,
)


def rows(values=(4.0, 1.0, 1.0, 3.0), reference: tuple[float, ...] | None = None) -> ScoredLogprobs:
    """Log-probs -6, -4, -2, -5 of 3, 2, 2 and 5 tokens; the data set's rewards have mean 2 and deviation 0.5."""
    return ScoredLogprobs(
        policy=torch.tensor([-6.0, -4.0, -2.0, -5.0], dtype=torch.float64, requires_grad=True),
        reference=None if reference is None else torch.tensor(reference, dtype=torch.float64),
        lengths=torch.tensor([3, 2, 2, 5]),
        groups=torch.tensor([0, 0, 0, 1]),
        values=torch.tensor(values, dtype=torch.float64),
        mean=2.0,
        std=0.5,
    )


summed = partial(reward_weighted, kl_weight=0.0, by_length=False)
likelihood = partial(soft_preference, kl_weight=0.0, by_length=False)


def test_baseline_of_the_dataset() -> None:
    # A = 2, -1, -1, 1: (2 * 6 - 4 - 2) / 3 + 1 * 5
    loss = summed(rows(), advantage=partial(dataset_advantage, divide_by_std=False))
    assert loss.total.item() == pytest.approx(6 / 3 + 5, abs=1e-12)
    found = means(loss)
    assert found["reward"] == pytest.approx(2.25) and found["advantage_size"] == pytest.approx(1.25)
    # over the deviation 0.5: twice that
    scaled = summed(rows(), advantage=partial(dataset_advantage, divide_by_std=True)).total.item()
    assert scaled == pytest.approx(14.0, rel=1e-5)


def test_baseline_of_the_group() -> None:
    # mean 2: A = 2, -1, -1, and 0 for the prompt with one response
    loss = summed(rows(), advantage=partial(group_advantage, divide_by_std=False))
    assert loss.total.item() == pytest.approx(2.0, abs=1e-12)
    # sample deviation of 4, 1, 1: sqrt((4 + 1 + 1) / 2) = sqrt(3)
    scaled = summed(rows(), advantage=partial(group_advantage, divide_by_std=True)).total.item()
    assert scaled == pytest.approx(2 / math.sqrt(3), rel=1e-5)


def test_equal_rewards_teach_a_group_nothing() -> None:
    for divide in (False, True):
        loss = summed(rows(values=(2.0, 2.0, 2.0, 5.0)), advantage=partial(group_advantage, divide_by_std=divide))
        assert loss.total.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("num", "value"), [(7, 6.42), (16, 7.16), (8, 1000.1)])
def test_equal_rewards_are_equal_in_fp32_too(num: int, value: float) -> None:
    """Their mean in fp32 is one rounding off, and so is their deviation: the quotient would be a half."""
    equal = torch.full((num,), value)
    batch = ScoredLogprobs(
        policy=-equal, reference=None, lengths=torch.ones(num), groups=torch.zeros(num, dtype=torch.int64), values=equal
    )
    assert group_advantage(batch, divide_by_std=True).tolist() == [0.0] * num


def test_a_policy_far_from_the_reference_has_a_finite_penalty() -> None:
    batch = rows(reference=(-20000.0, 20000.0, -2.0, -5.0))
    loss = reward_weighted(batch, advantage=raw_reward, kl_weight=0.1, by_length=False).total
    loss.backward()
    assert torch.isfinite(loss) and batch.policy.grad is not None and torch.isfinite(batch.policy.grad).all()


def test_no_baseline_and_mean_tokens() -> None:
    # (4 * 2 + 1 * 2 + 1 * 1) / 3 + 3 * 1
    loss = reward_weighted(rows(), advantage=raw_reward, kl_weight=0.0, by_length=True)
    assert loss.total.item() == pytest.approx(11 / 3 + 3, abs=1e-12)


def test_reward_gradient_is_the_advantage() -> None:
    batch = rows()
    summed(batch, advantage=partial(dataset_advantage, divide_by_std=False)).total.backward()
    assert batch.policy.grad is not None
    assert batch.policy.grad.tolist() == pytest.approx([-2 / 3, 1 / 3, 1 / 3, -1.0], abs=1e-12)


def test_softmax_of_rewards() -> None:
    # softmax(4, 1, 1) = e^3 : 1 : 1; the single response has weight 1
    loss = likelihood(rows(), log_weight=partial(tempered_rewards, temperature=1.0))
    e = math.exp(3.0)
    assert loss.total.item() == pytest.approx((6 * e + 4 + 2) / (e + 2) + 5, abs=1e-12)
    assert means(loss)["top_weight"] == pytest.approx((e / (e + 2) + 1) / 2)
    # Temperature 3: softmax(4/3, 1/3, 1/3) = e : 1 : 1
    warm = likelihood(rows(), log_weight=partial(tempered_rewards, temperature=3.0)).total.item()
    assert warm == pytest.approx((6 * math.e + 4 + 2) / (math.e + 2) + 5, abs=1e-12)


def test_stored_weights_stay_or_are_tempered() -> None:
    # 0.64, 0.32, 0.04 as they are; at temperature 2 their roots 0.8 : 0.5657 : 0.2
    values = (0.64, 0.32, 0.04, 1.0)
    kept = likelihood(rows(values), log_weight=partial(tempered_weights, temperature=1.0)).total.item()
    assert kept == pytest.approx(0.64 * 6 + 0.32 * 4 + 0.04 * 2 + 5, abs=1e-12)
    roots = [math.sqrt(value) for value in values[:3]]
    warm = likelihood(rows(values), log_weight=partial(tempered_weights, temperature=2.0)).total.item()
    expected = (6 * roots[0] + 4 * roots[1] + 2 * roots[2]) / sum(roots) + 5
    assert warm == pytest.approx(expected, abs=1e-12)


def test_tempering_weights_is_tempering_their_rewards() -> None:
    rewards = torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64)
    stored = (*torch.softmax(rewards, 0).tolist(), 1.0)
    by_weights = likelihood(rows(stored), log_weight=partial(tempered_weights, temperature=2.0))
    by_rewards = likelihood(rows(), log_weight=partial(tempered_rewards, temperature=2.0))
    assert by_weights.total.item() == pytest.approx(by_rewards.total.item(), abs=1e-12)


def test_a_weight_of_zero_trains_nothing() -> None:
    batch = rows((1.0, 0.0, 0.0, 1.0))
    likelihood(batch, log_weight=partial(tempered_weights, temperature=1.0)).total.backward()
    assert batch.policy.grad is not None and batch.policy.grad.tolist() == [-1.0, 0.0, 0.0, -1.0]


def test_penalty_is_k3_of_the_mean_token() -> None:
    # d = (ref - policy) / tokens = 3/3, 0, -1/2, 0: e^d - d - 1 = e - 2, 0, e^-0.5 - 0.5, 0
    reference = (-3.0, -4.0, -3.0, -5.0)
    penalty = (math.e - 2 + math.exp(-0.5) - 0.5) / 3
    for formula in (
        partial(reward_weighted, advantage=raw_reward), partial(soft_preference, log_weight=raw_reward),
    ):  # fmt: skip
        free = formula(rows(), kl_weight=0.0, by_length=False).total.item()
        tied = formula(rows(reference=reference), kl_weight=0.3, by_length=False)
        assert tied.total.item() - free == pytest.approx(0.3 * penalty, abs=1e-12)
        assert means(tied)["kl"] == pytest.approx(penalty / 2)


def test_penalty_pulls_to_the_reference_from_both_sides() -> None:
    # With A = 0 only the penalty is left: d/d log pi = kl_weight (1 - e^d) / tokens / responses
    batch = rows(values=(0.0, 0.0, 0.0, 0.0), reference=(-3.0, -4.0, -3.0, -5.0))
    reward_weighted(batch, advantage=raw_reward, kl_weight=0.3, by_length=False).total.backward()
    expected = [0.3 * (1 - math.e) / 9, 0.0, 0.3 * (1 - math.exp(-0.5)) / 6, 0.0]
    assert batch.policy.grad is not None and batch.policy.grad.tolist() == pytest.approx(expected, abs=1e-12)


def test_prompts_may_lie_in_any_order() -> None:
    batch = rows()
    order = torch.tensor([3, 1, 0, 2])
    turned = ScoredLogprobs(
        policy=batch.policy[order], reference=None, lengths=batch.lengths[order], groups=batch.groups[order],
        values=batch.values[order], mean=2.0, std=0.5,
    )  # fmt: skip
    for advantage in (partial(group_advantage, divide_by_std=True), raw_reward):
        one, two = summed(batch, advantage=advantage), summed(turned, advantage=advantage)
        assert one.total.item() == pytest.approx(two.total.item(), abs=1e-12)
