"""Formulas of the difference h against numbers worked out by hand in float64: h = (2, -0.5), see `pairs`."""

from __future__ import annotations

import math

import pytest
import torch

from tests.objectives.pairs import at_reference, means, pairs, sigma, softplus
from whet.objectives.pairwise import (
    PairLogprobs,
    discopop,
    exo,
    hinge,
    ipo_length,
    ipo_sum,
    robust,
    sigmoid,
    sigmoid_norm,
)


def test_sigmoid_is_minus_log_sigma_of_beta_h() -> None:
    # -log sigma(0.5 * 2) = log(1 + e^-1) = 0.31326169; -log sigma(0.5 * -0.5) = log(1 + e^0.25) = 0.82593942
    loss = sigmoid(pairs(), beta=0.5)
    assert loss.total.item() == pytest.approx(0.313261687518 + 0.825939419879, abs=1e-9)
    assert loss.total.item() == pytest.approx(softplus(-1.0) + softplus(0.25), abs=1e-12)


def test_label_smoothing_mixes_both_directions() -> None:
    # (1-e) log(1+e^-z) + e log(1+e^z) with z = 1 and -0.25, e = 0.1
    expected = 0.9 * softplus(-1.0) + 0.1 * softplus(1.0) + 0.9 * softplus(0.25) + 0.1 * softplus(-0.25)
    assert sigmoid(pairs(), beta=0.5, label_smoothing=0.1).total.item() == pytest.approx(expected, abs=1e-12)


def test_gradient_weight_is_the_chance_of_the_wrong_order() -> None:
    batch = pairs()
    sigmoid(batch, beta=0.5).total.backward()
    # d/d log pi(y_w) = -beta sigma(-beta h): -0.5 / (1 + e^1), -0.5 / (1 + e^-0.25)
    expected = torch.tensor([-0.5 / (1 + math.e), -0.5 / (1 + math.exp(-0.25))], dtype=torch.float64)
    torch.testing.assert_close(batch.chosen.grad, expected)
    torch.testing.assert_close(batch.rejected.grad, -expected)


def test_robust_takes_the_flipped_loss_off() -> None:
    # ((1-e) l(z) - e l(-z)) / (1-2e), z = 1 and -0.25, e = 0.1: (0.9 * 0.3132617 - 0.1 * 1.3132617) / 0.8 = 0.1882617
    # and (0.9 * 0.8259394 - 0.1 * 0.5759394) / 0.8 = 0.8571894
    loss = robust(pairs(), beta=0.5, label_smoothing=0.1)
    assert loss.total.item() == pytest.approx(0.188261687518 + 0.857189419879, abs=1e-9)


def test_robust_is_unbiased_for_flipped_labels() -> None:
    # Flip labels with probability e and average: what comes out is the DPO loss of the true labels.
    e, straight = 0.2, pairs()
    turned = pairs(chosen=(-12.0, -3.0), rejected=(-10.0, -4.0), ref_chosen=(-11.0, -4.0), ref_rejected=(-11.0, -4.5))
    mean = (1 - e) * robust(straight, beta=0.5, label_smoothing=e).total + e * robust(
        turned, beta=0.5, label_smoothing=e
    ).total
    assert mean.item() == pytest.approx(sigmoid(straight, beta=0.5).total.item(), abs=1e-12)


def test_hinge_is_flat_beyond_its_margin() -> None:
    # max(0, 1 - 0.5 * 2) = 0 and max(0, 1 - 0.5 * -0.5) = 1.25; with beta 1: 0 and 1.5
    assert hinge(pairs(), beta=0.5).total.item() == pytest.approx(1.25, abs=1e-12)
    batch = pairs()
    loss = hinge(batch, beta=1.0)
    assert loss.total.item() == pytest.approx(1.5, abs=1e-12)
    loss.total.backward()
    torch.testing.assert_close(batch.chosen.grad, torch.tensor([0.0, -1.0], dtype=torch.float64))


def test_ipo_pulls_h_to_its_target() -> None:
    # 1/(2 tau) = 1: (2 - 1)^2 + (-0.5 - 1)^2 = 1 + 2.25
    assert ipo_sum(pairs(), tau=0.5).total.item() == pytest.approx(3.25, abs=1e-12)
    # per token: h = 1/5 + 1/4 = 0.45 and 0.5/2 - 1/4 = 0: (0.45 - 1)^2 + (0 - 1)^2 = 0.3025 + 1
    assert ipo_length(pairs(), tau=0.5).total.item() == pytest.approx(1.3025, abs=1e-12)


def test_exo_is_the_reverse_kl_to_the_smoothed_label() -> None:
    # q = sigma(z) against p = 0.9: q log(q/p) + (1-q) log((1-q)/(1-p)), z = 1 and -0.25
    expected = 0.0
    for z in (1.0, -0.25):
        q = sigma(z)
        expected += q * math.log(q / 0.9) + (1 - q) * math.log((1 - q) / 0.1)
    loss = exo(pairs(), beta=0.5, label_smoothing=0.1)
    assert loss.total.item() == pytest.approx(expected, abs=1e-12)
    # It is zero where q is the label: beta h = log(0.9 / 0.1) for both pairs, here by h = 2.
    same = pairs(rejected=(-12.0, -5.5))
    assert exo(same, beta=math.log(9.0) / 2, label_smoothing=0.1).total.item() == pytest.approx(0.0, abs=1e-12)


def test_discopop_blends_logistic_and_exponential() -> None:
    # z = 1 and -0.25, m = sigma(z / 0.5) = sigma(2) and sigma(-0.5): (1 - m) log(1 + e^-z) + m e^-z
    expected = sum((1 - sigma(z / 0.5)) * softplus(-z) + sigma(z / 0.5) * math.exp(-z) for z in (1.0, -0.25))
    assert discopop(pairs(), beta=0.5, tau=0.5).total.item() == pytest.approx(expected, abs=1e-12)


def test_discopop_stays_finite_far_from_the_reference() -> None:
    batch = pairs(chosen=(-3000.0, 0.0), rejected=(0.0, -3000.0))
    loss = discopop(batch, beta=1.0, tau=0.05)
    loss.total.backward()
    # z = -2999 on the first pair: the logistic loss alone, |z| of it; z = +2999.5 or so on the second: nothing.
    assert loss.total.item() == pytest.approx(3000.0, abs=1e-6)
    assert batch.chosen.grad is not None and batch.chosen.grad.tolist() == pytest.approx([-1.0, 0.0])


def test_sigmoid_norm_takes_the_mean_token() -> None:
    # h per token: 1/5 + 1/4 = 0.45 and 0.5/2 - 1/4 = 0; beta 5: log(1 + e^-2.25) + log 2
    loss = sigmoid_norm(pairs(), beta=5.0)
    assert loss.total.item() == pytest.approx(softplus(-2.25) + math.log(2.0), abs=1e-12)
    smoothed = sigmoid_norm(pairs(), beta=5.0, label_smoothing=0.1).total.item()
    assert smoothed == pytest.approx(0.9 * softplus(-2.25) + 0.1 * softplus(2.25) + math.log(2.0), abs=1e-12)


def test_values_at_the_reference() -> None:
    same = at_reference()
    for beta in (0.01, 0.1, 5.0):
        assert sigmoid(same, beta=beta).total.item() == pytest.approx(2 * math.log(2), abs=1e-12)
        assert sigmoid(same, beta=beta, label_smoothing=0.2).total.item() == pytest.approx(2 * math.log(2), abs=1e-12)
        assert robust(same, beta=beta, label_smoothing=0.1).total.item() == pytest.approx(2 * math.log(2), abs=1e-12)
        assert sigmoid_norm(same, beta=beta).total.item() == pytest.approx(2 * math.log(2), abs=1e-12)
        assert hinge(same, beta=beta).total.item() == pytest.approx(2.0, abs=1e-12)
        assert discopop(same, beta=beta, tau=0.05).total.item() == pytest.approx(math.log(2) + 1, abs=1e-12)
        e = 1e-3
        constant = -math.log(2) - 0.5 * (math.log(1 - e) + math.log(e))
        assert exo(same, beta=beta, label_smoothing=e).total.item() == pytest.approx(2 * constant, abs=1e-12)
    assert ipo_sum(same, tau=0.1).total.item() == pytest.approx(2 * 25.0, abs=1e-12)
    assert ipo_length(same, tau=0.1).total.item() == pytest.approx(2 * 25.0, abs=1e-12)


def test_metrics_are_totals_over_pairs() -> None:
    found = means(sigmoid(pairs(), beta=0.5))
    assert found["rewards/chosen"] == pytest.approx(0.5 * 0.75)
    assert found["rewards/rejected"] == pytest.approx(0.0)
    assert found["rewards/margins"] == pytest.approx(0.5 * 0.75)
    assert found["rewards/accuracies"] == pytest.approx(0.5)
    assert found["logps/chosen"] == pytest.approx(-7.0)


def test_a_tie_counts_half() -> None:
    assert means(sigmoid(at_reference(), beta=0.1))["rewards/accuracies"] == 0.5


def test_losses_are_sums_over_pairs() -> None:
    both = pairs()
    one, two = (
        PairLogprobs(**{name: getattr(both, name)[place : place + 1] for name in both.__dataclass_fields__})
        for place in (0, 1)
    )
    for formula in (sigmoid, hinge):
        split = formula(one, beta=0.3).total + formula(two, beta=0.3).total
        assert formula(both, beta=0.3).total.item() == pytest.approx(split.item(), abs=1e-12)
