"""KL estimators over a whole vocabulary, and controllers by hand and in a loop."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from tests.objectives.tokens import tensor
from whet.objectives.kl import AdaptiveKl, FixedKl, k1, k2, k3


def test_a_step_of_more_responses_than_the_horizon_changes_the_weight_by_a_fifth() -> None:
    """Without a bound, 512 responses and a horizon of 50 turn the weight negative: drift would be rewarded."""
    controller = AdaptiveKl(weight=0.02, target=0.1, horizon=50.0)
    assert controller.updated(0.0, 512).weight == pytest.approx(0.8 * 0.02)
    assert controller.updated(9.0, 512).weight == pytest.approx(1.2 * 0.02)


def test_estimators_by_hand() -> None:
    policy, reference = tensor(math.log(0.5), math.log(0.2)), tensor(math.log(0.25), math.log(0.4))
    ln2 = math.log(2)
    torch.testing.assert_close(k1(policy, reference), tensor(ln2, -ln2))
    torch.testing.assert_close(k2(policy, reference), tensor(ln2**2 / 2, ln2**2 / 2))
    torch.testing.assert_close(k3(policy, reference), tensor(0.5 + ln2 - 1, 2 - ln2 - 1))


def test_k1_and_k3_are_the_kl_on_average_and_k2_is_not() -> None:
    policy, reference = tensor(0.6, 0.3, 0.1).log(), tensor(0.2, 0.5, 0.3).log()
    exact = float((policy.exp() * (policy - reference)).sum())
    assert float((policy.exp() * k1(policy, reference)).sum()) == pytest.approx(exact)
    assert float((policy.exp() * k3(policy, reference)).sum()) == pytest.approx(exact)
    assert float((policy.exp() * k2(policy, reference)).sum()) != pytest.approx(exact, rel=1e-3)


def test_k3_far_away_is_finite_and_pulls_nowhere() -> None:
    policy = torch.tensor([-200.0, -1.0], requires_grad=True)
    found = k3(policy, torch.tensor([-1.0, -200.0]))
    assert torch.isfinite(found).all()
    assert torch.autograd.grad(found.sum(), policy)[0].tolist() == [0.0, 0.0]


def test_a_kl_that_is_no_number_leaves_the_weight() -> None:
    controller = AdaptiveKl(weight=0.2, target=6.0, horizon=1000.0)
    assert controller.updated(math.nan, 100) == controller.updated(math.inf, 100) == controller


def test_adaptive_by_hand() -> None:
    controller = AdaptiveKl(weight=0.2, target=6.0, horizon=1000.0)
    # a tenth above: e = 0.1, 0.2 (1 + 0.1 * 100 / 1000); far off: e = 0.2 either way
    assert controller.updated(6.6, 100).weight == pytest.approx(0.2 * 1.01)
    assert controller.updated(5.4, 100).weight == pytest.approx(0.2 * 0.99)
    assert controller.updated(60.0, 100).weight == pytest.approx(0.2 * 1.02)
    assert controller.updated(-3.0, 100).weight == pytest.approx(0.2 * 0.98)
    assert controller.updated(6.0, 100).weight == 0.2
    assert controller.updated(6.6, 100).target == 6.0


@pytest.mark.parametrize("first", [0.001, 5.0])
def test_adaptive_approaches_its_target_from_both_sides(first: float) -> None:
    """A policy whose KL is 0.02 / weight: too weak a weight rises to 0.2, too strong a one falls to it."""
    controller, distances = AdaptiveKl(weight=first, target=0.1, horizon=500.0), []
    for _ in range(2000):
        measured = 0.02 / controller.weight
        distances.append(abs(measured - 0.1))
        controller = controller.updated(measured, 64)
    assert 0.02 / controller.weight == pytest.approx(0.1, rel=1e-6)
    assert controller.weight == pytest.approx(0.2, rel=1e-6)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(distances))


def test_fixed_stays() -> None:
    assert FixedKl(0.05).updated(100.0, 64) == FixedKl(0.05)
