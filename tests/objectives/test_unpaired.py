"""KTO and its kin on three responses: r = (1, -1, 0.5), good, bad, good."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.objectives.pairs import means, sigma
from whet.objectives.loss import Loss
from whet.objectives.unpaired import RatingLogprobs, apo_zero_unpaired, kto


def ratings(policy=(-10.0, -12.0, -4.0), reference=(-11.0, -11.0, -4.5), kl: float = 0.3) -> RatingLogprobs:
    return RatingLogprobs(
        policy=torch.tensor(policy, dtype=torch.float64, requires_grad=True),
        reference=torch.tensor(reference, dtype=torch.float64),
        good=torch.tensor([True, False, True]),
        kl=torch.tensor(kl, dtype=torch.float64),
    )


def even(rows: RatingLogprobs, desirable: float = 1.0, undesirable: float = 1.0, beta: float = 0.5) -> Loss:
    return kto(rows, beta=beta, desirable_weight=desirable, undesirable_weight=undesirable)


def test_kto_values_good_and_bad_against_the_kl() -> None:
    # good: 1 - sigma(0.5 (1 - 0.3)), 1 - sigma(0.5 (0.5 - 0.3)); bad: 1 - sigma(0.5 (0.3 + 1))
    expected = 1 - sigma(0.35) + 1 - sigma(0.1) + 1 - sigma(0.65)
    loss = even(ratings())
    assert loss.total.item() == pytest.approx(expected, abs=1e-12)
    assert means(loss)["kl"] == pytest.approx(0.3)


def test_weights_balance_the_two_sides() -> None:
    expected = 1.5 * (2 - sigma(0.35) - sigma(0.1)) + 0.25 * (1 - sigma(0.65))
    assert even(ratings(), 1.5, 0.25).total.item() == pytest.approx(expected, abs=1e-12)


def test_kto_at_the_reference_is_half_the_weight() -> None:
    same = ratings(reference=(-10.0, -12.0, -4.0), kl=0.0)
    assert even(same).total.item() == pytest.approx(1.5, abs=1e-12)
    assert even(same, 2.0, 1.0).total.item() == pytest.approx(2.5, abs=1e-12)


def test_gradient_pushes_good_up_and_bad_down() -> None:
    rows = ratings()
    even(rows).total.backward()
    # -+ beta sigma'(beta (r - z))
    slopes = [0.5 * sigma(z) * sigma(-z) for z in (0.35, -0.65, 0.1)]
    assert rows.policy.grad is not None
    assert rows.policy.grad.tolist() == pytest.approx([-slopes[0], slopes[1], -slopes[2]], abs=1e-12)


def test_apo_zero_unpaired_does_not_read_the_kl() -> None:
    # 1 - sigma(0.5), sigma(-0.5), 1 - sigma(0.25)
    formula = partial(apo_zero_unpaired, beta=0.5, desirable_weight=1.0, undesirable_weight=1.0)
    expected = 1 - sigma(0.5) + sigma(-0.5) + 1 - sigma(0.25)
    assert formula(ratings()).total.item() == pytest.approx(expected, abs=1e-12)
    assert formula(ratings(kl=9.0)).total.item() == pytest.approx(expected, abs=1e-12)


def test_metrics_count_each_side() -> None:
    found = means(even(ratings()))
    assert found["rewards/chosen"] == pytest.approx(0.5 * 0.75)
    assert found["rewards/rejected"] == pytest.approx(-0.5)
    assert found["logps/rejected"] == pytest.approx(-12.0)
    assert found["rewards/accuracies"] == pytest.approx(1.0)
    # With z_0 = 0.5 the last good response is on the line (half), with 0.7 on the wrong side.
    assert means(even(ratings(kl=0.5)))["rewards/accuracies"] == pytest.approx(2.5 / 3)
    assert means(even(ratings(kl=0.7)))["rewards/accuracies"] == pytest.approx(2 / 3)


def test_one_side_may_be_empty() -> None:
    rows = RatingLogprobs(
        policy=torch.tensor([-1.0]), reference=torch.tensor([-2.0]), good=torch.tensor([True]), kl=torch.tensor(0.0)
    )
    loss = even(rows)
    assert loss.metrics["rewards/rejected"].count == 0.0
    assert float(loss.metrics["rewards/rejected"].total) == 0.0
