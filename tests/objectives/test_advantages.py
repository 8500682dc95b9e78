"""Advantages of responses by hand: three to one prompt, two to another, and what has no reward."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.objectives.tokens import tensor
from whet.objectives.advantages import (
    best_of_group,
    group_advantages,
    leave_one_out,
    raw_rewards,
    reward_metrics,
)
from whet.objectives.loss import Total

NAN = math.nan
GROUPS = torch.tensor([0, 0, 0, 1, 1])


def values(metrics: dict[str, Total]) -> dict[str, float]:
    return {name: float(metric.total) / metric.count for name, metric in metrics.items()}


def test_group_mean() -> None:
    found = group_advantages(tensor(4, 1, 1, 3, 5), GROUPS, divide_by_std=False)
    torch.testing.assert_close(found, tensor(2, -1, -1, -1, 1))


def test_group_mean_over_deviation() -> None:
    # sample deviations sqrt((4 + 1 + 1) / 2) = sqrt 3 and sqrt 2
    found = group_advantages(tensor(4, 1, 1, 3, 5), GROUPS, divide_by_std=True, epsilon=0.0)
    torch.testing.assert_close(found, tensor(2, -1, -1, -math.sqrt(1.5), math.sqrt(1.5)) / math.sqrt(3))
    added = group_advantages(tensor(4, 1, 1, 3, 5), GROUPS, divide_by_std=True, epsilon=1.0)
    assert added[0].item() == pytest.approx(2 / (math.sqrt(3) + 1))


def test_leave_one_out() -> None:
    # 4 - (1 + 1) / 2, 1 - (4 + 1) / 2 twice; 3 - 5, 5 - 3
    torch.testing.assert_close(leave_one_out(tensor(4, 1, 1, 3, 5), GROUPS), tensor(3, -1.5, -1.5, -2, 2))


def test_best_of_group() -> None:
    assert best_of_group(tensor(1, 4, 4, 3, 5), GROUPS).tolist() == [0, 1, 0, 0, 1]
    assert best_of_group(tensor(NAN, -4, -6, NAN, NAN), GROUPS).tolist() == [0, 1, 0, 0, 0]
    assert best_of_group(tensor(-math.inf, -4, -6, -math.inf, NAN), GROUPS).tolist() == [0, 1, 0, 0, 0]


def test_raw_rewards() -> None:
    assert raw_rewards(tensor(1, NAN, 3, 0, -1), GROUPS).tolist() == [1, 0, 3, 0, -1]


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_a_failed_reward_stands_in_no_statistic(bad: float) -> None:
    rewards = tensor(4, bad, 2, 3, bad)
    # mean 3, sample deviation sqrt 2; the last prompt has one reward, with nothing to compare it with
    torch.testing.assert_close(group_advantages(rewards, GROUPS, divide_by_std=False), tensor(1, 0, -1, 0, 0))
    scaled = group_advantages(rewards, GROUPS, divide_by_std=True, epsilon=0.0 + 1e-12)
    torch.testing.assert_close(scaled, tensor(1, 0, -1, 0, 0) / math.sqrt(2))
    torch.testing.assert_close(leave_one_out(rewards, GROUPS), tensor(2, 0, -2, 0, 0))


def test_all_failed() -> None:
    rewards = tensor(NAN, NAN, NAN, 1, 0)
    for advantage in (partial(group_advantages, divide_by_std=True), leave_one_out, best_of_group, raw_rewards):
        assert advantage(rewards, GROUPS)[:3].tolist() == [0, 0, 0]


def test_equal_rewards_have_no_advantage_at_all() -> None:
    """0.1 three times has a mean that is not 0.1: without care the advantage would be 1e-11 and not 0."""
    rewards = tensor(0.1, 0.1, 0.1, 0.7, 0.7).float()
    for advantage in (
        partial(group_advantages, divide_by_std=True), partial(group_advantages, divide_by_std=False), leave_one_out,
    ):  # fmt: skip
        assert advantage(rewards, GROUPS).tolist() == [0, 0, 0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(2, 9).flatmap(
        lambda n: st.tuples(st.lists(st.floats(-10, 10), min_size=3 * n, max_size=3 * n), st.just(n))
    )
)
def test_dr_grpo_times_g_over_g_minus_one_is_rloo(drawn: tuple[list[float], int]) -> None:
    rewards, size = drawn
    groups = torch.arange(3).repeat_interleave(size)
    plain = group_advantages(tensor(*rewards), groups, divide_by_std=False)
    torch.testing.assert_close(plain * size / (size - 1), leave_one_out(tensor(*rewards), groups))


def test_order_does_not_matter() -> None:
    rewards, order = tensor(4, 1, 1, 3, 5), torch.tensor([3, 0, 4, 2, 1])
    for advantage in (partial(group_advantages, divide_by_std=True), leave_one_out):
        found = advantage(rewards[order], GROUPS[order])
        torch.testing.assert_close(found, advantage(rewards, GROUPS)[order])


def test_no_responses() -> None:
    none, groups = tensor(), torch.zeros(0, dtype=torch.long)
    for advantage in (partial(group_advantages, divide_by_std=True), leave_one_out, best_of_group, raw_rewards):
        assert advantage(none, groups).tolist() == []


def test_metrics() -> None:
    groups = torch.tensor([0, 0, 0, 1, 1, 2])
    found = values(reward_metrics(tensor(4, 1, 1, 3, 3, NAN), groups))
    assert found["reward"] == pytest.approx(12 / 5)
    assert found["reward_std"] == pytest.approx(math.sqrt(3) / 2)  # of two prompts; the third is not known
    assert found["frac_reward_zero_std"] == pytest.approx(1 / 2)
