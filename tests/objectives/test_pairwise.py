"""Pairwise formulas against numbers worked out by hand in float64."""

from __future__ import annotations

import math

import pytest
import torch

from whet.objectives.pairwise import PairLogprobs, ipo_length, ipo_sum, sigmoid


def pairs(
    chosen=(-10.0, -4.0), rejected=(-12.0, -3.0), ref_chosen=(-11.0, -4.5), ref_rejected=(-11.0, -4.0)
) -> PairLogprobs:
    """Two pairs. r_w = (1, 0.5), r_l = (-1, 1), so h = (2, -0.5); lengths (5, 2) and (4, 4)."""

    def tensor(values: tuple[float, ...]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return PairLogprobs(
        chosen=tensor(chosen).requires_grad_(),
        rejected=tensor(rejected).requires_grad_(),
        reference_chosen=tensor(ref_chosen),
        reference_rejected=tensor(ref_rejected),
        chosen_length=tensor((5.0, 2.0)),
        rejected_length=tensor((4.0, 4.0)),
    )


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


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


def test_at_the_reference_sigmoid_is_log_two_a_pair() -> None:
    same = pairs(ref_chosen=(-10.0, -4.0), ref_rejected=(-12.0, -3.0))
    for beta in (0.01, 0.1, 5.0):
        assert sigmoid(same, beta=beta).total.item() == pytest.approx(2 * math.log(2), abs=1e-12)
    assert ipo_sum(same, tau=0.1).total.item() == pytest.approx(2 * 25.0, abs=1e-12)
    assert ipo_length(same, tau=0.1).total.item() == pytest.approx(2 * 25.0, abs=1e-12)


def test_ipo_pulls_h_to_its_target() -> None:
    # 1/(2 tau) = 1: (2 - 1)^2 + (-0.5 - 1)^2 = 1 + 2.25
    assert ipo_sum(pairs(), tau=0.5).total.item() == pytest.approx(3.25, abs=1e-12)
    # per token: h = 1/5 + 1/4 = 0.45 and 0.5/2 - 1/4 = 0: (0.45 - 1)^2 + (0 - 1)^2 = 0.3025 + 1
    assert ipo_length(pairs(), tau=0.5).total.item() == pytest.approx(1.3025, abs=1e-12)


def test_metrics_are_totals_over_pairs() -> None:
    metrics = sigmoid(pairs(), beta=0.5).metrics
    means = {name: total.total.item() / total.count for name, total in metrics.items()}
    assert means["rewards/chosen"] == pytest.approx(0.5 * 0.75)
    assert means["rewards/rejected"] == pytest.approx(0.0)
    assert means["rewards/margins"] == pytest.approx(0.5 * 0.75)
    assert means["rewards/accuracies"] == pytest.approx(0.5)
    assert means["logps/chosen"] == pytest.approx(-7.0)


def test_a_tie_counts_half() -> None:
    same = pairs(ref_chosen=(-10.0, -4.0), ref_rejected=(-12.0, -3.0))
    accuracy = sigmoid(same, beta=0.1).metrics["rewards/accuracies"]
    assert accuracy.total.item() / accuracy.count == 0.5
