"""f' of each divergence against finite differences of f itself, as the paper's table prints f."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch

from tests.objectives.pairs import at_reference, pairs, softplus
from whet.objectives.divergence import Slope, alpha_divergence, forward_kl, js, reverse_kl
from whet.objectives.pairwise import hinge, sigmoid

A = 0.3
PAPER: list[tuple[Slope, Callable[[float], float]]] = [
    (reverse_kl, lambda u: u * math.log(u)),
    (forward_kl, lambda u: -math.log(u)),
    (js, lambda u: u * math.log(u) - (u + 1) * math.log((u + 1) / 2)),
    (partial(alpha_divergence, alpha=A), lambda u: (u ** (1 - A) - (1 - A) * u - A) / (A * (A - 1))),
]


def at(slope: Slope, u: float) -> float:
    return slope(torch.tensor(math.log(u), dtype=torch.float64)).item()


@pytest.mark.parametrize(("slope", "f"), PAPER, ids=["reverse_kl", "forward_kl", "js", "alpha"])
def test_slope_is_the_derivative_up_to_a_constant(slope: Slope, f: Callable[[float], float]) -> None:
    def derivative(u: float) -> float:
        return (f(u + 1e-6) - f(u - 1e-6)) / 2e-6

    for u in (0.2, 0.7, 3.0):
        assert at(slope, u) - at(slope, 1.0) == pytest.approx(derivative(u) - derivative(1.0), abs=1e-7)
    assert at(slope, 1.0) == pytest.approx(0.0, abs=1e-12)


def test_numbers_by_hand() -> None:
    # u = e^0.5: 1 - e^-0.5, log(2u / (1 + u)), (1 - e^-0.25) / 0.5
    assert at(forward_kl, math.exp(0.5)) == pytest.approx(0.393469340287)
    assert at(js, math.exp(0.5)) == pytest.approx(math.log(2 * 1.648721270700 / 2.648721270700))
    assert at(partial(alpha_divergence, alpha=0.5), math.exp(0.5)) == pytest.approx(0.442398433858)


def test_alpha_lies_between_the_two_kls() -> None:
    for u in (0.3, 4.0):
        assert at(partial(alpha_divergence, alpha=1e-6), u) == pytest.approx(at(reverse_kl, u), abs=1e-5)
        assert at(partial(alpha_divergence, alpha=1.0), u) == pytest.approx(at(forward_kl, u), abs=1e-12)


def test_it_takes_the_place_of_the_log_ratio() -> None:
    # r_w = (1, 0.5), r_l = (-1, 1): h = (e - 1/e, e^-1 - e^-0.5)
    first, second = math.e - 1 / math.e, math.exp(-1.0) - math.exp(-0.5)
    loss = sigmoid(pairs(), beta=0.5, slope=forward_kl).total.item()
    assert loss == pytest.approx(softplus(-0.5 * first) + softplus(-0.5 * second), abs=1e-12)
    assert hinge(pairs(), beta=0.1, slope=forward_kl).total.item() == pytest.approx(
        1 - 0.1 * first + 1 - 0.1 * second, abs=1e-12
    )
    for slope, _ in PAPER:
        assert sigmoid(at_reference(), beta=0.7, slope=slope).total.item() == pytest.approx(2 * math.log(2))


def test_far_responses_do_not_overflow() -> None:
    r = torch.tensor([-500.0, 500.0], requires_grad=True)
    for slope, _ in PAPER:
        value = slope(r)
        assert bool(torch.isfinite(value).all())
        (gradient,) = torch.autograd.grad(value.sum(), r)
        assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("slope", [forward_kl, partial(alpha_divergence, alpha=0.5)], ids=["forward_kl", "alpha"])
def test_far_away_the_norm_of_a_gradient_is_finite_in_fp32(slope: Slope) -> None:
    r = torch.arange(-120.0, 0.0, 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(slope(r).sum(), r)
    assert torch.isfinite(torch.linalg.vector_norm(gradient)) and gradient.abs().max() > 1e5
