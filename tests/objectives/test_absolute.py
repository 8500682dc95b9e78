"""Formulas of each response's own log-ratio: r_w = (1, 0.5), r_l = (-1, 1), see `pairs`."""

from __future__ import annotations

import math

import pytest

from tests.objectives.pairs import at_reference, means, pairs, sigma, softplus
from whet.objectives.absolute import apo_down, apo_zero, bco, bco_shifted, kto_pair, nca, sppo

LOG2 = math.log(2.0)


def test_nca() -> None:
    # beta 0.5: -log sigma(0.5) - log sigma(-0.5)/2 - log sigma(0.5)/2 = 0.4740770 + 0.4870385 + 0.2370385, and
    # -log sigma(0.25) - log sigma(-0.25)/2 - log sigma(-0.5)/2 = 0.5759394 + 0.4129697 + 0.4870385
    first = softplus(-0.5) + 0.5 * softplus(0.5) + 0.5 * softplus(-0.5)
    second = softplus(-0.25) + 0.5 * softplus(0.25) + 0.5 * softplus(0.5)
    total = nca(pairs(), beta=0.5).total.item()
    assert total == pytest.approx(first + second, abs=1e-12)
    assert total == pytest.approx(1.1981539 + 1.4759476, abs=1e-6)


def test_bco_without_shift() -> None:
    # -log sigma(0.5) - log sigma(0.5) and -log sigma(0.25) - log sigma(-0.5)
    expected = 2 * softplus(-0.5) + softplus(-0.25) + softplus(0.5)
    assert bco(pairs(), beta=0.5).total.item() == pytest.approx(expected, abs=1e-12)


def test_bco_takes_the_mean_reward_off() -> None:
    # rewards 0.5, 0.25 and -0.5, 0.5: mean 0.1875. 0.3125, 0.0625 and -0.6875, 0.3125 are left.
    loss = bco_shifted(pairs(), beta=0.5)
    expected = softplus(-0.3125) + softplus(-0.0625) + softplus(-0.6875) + softplus(0.3125)
    assert loss.total.item() == pytest.approx(expected, abs=1e-12)
    assert means(loss)["reward_shift"] == pytest.approx(0.1875)


def test_the_shift_carries_no_gradient() -> None:
    batch = pairs()
    bco_shifted(batch, beta=0.5).total.backward()
    # d/d r_w = -beta sigma(-(beta r_w - d)), d/d r_l = beta sigma(beta r_l - d)
    chosen = [-0.5 * sigma(-0.3125), -0.5 * sigma(-0.0625)]
    rejected = [0.5 * sigma(-0.6875), 0.5 * sigma(0.3125)]
    assert batch.chosen.grad is not None and batch.chosen.grad.tolist() == pytest.approx(chosen, abs=1e-12)
    assert batch.rejected.grad is not None and batch.rejected.grad.tolist() == pytest.approx(rejected, abs=1e-12)


def test_sppo_has_a_target_for_each_response() -> None:
    # 1/(2 beta) = 2: (1 - 2)^2 + (-1 + 2)^2 + (0.5 - 2)^2 + (1 + 2)^2 = 1 + 1 + 2.25 + 9
    assert sppo(pairs(), beta=0.25).total.item() == pytest.approx(13.25, abs=1e-12)


def test_apo() -> None:
    # zero: 1 - sigma(0.5) + sigma(-0.5) + 1 - sigma(0.25) + sigma(0.5)
    zero = 1 - sigma(0.5) + sigma(-0.5) + 1 - sigma(0.25) + sigma(0.5)
    assert apo_zero(pairs(), beta=0.5).total.item() == pytest.approx(zero, abs=1e-12)
    # down: sigma(0.5) + 1 - sigma(1) + sigma(0.25) + 1 - sigma(-0.25)
    down = sigma(0.5) + 1 - sigma(1.0) + sigma(0.25) + 1 - sigma(-0.25)
    assert apo_down(pairs(), beta=0.5).total.item() == pytest.approx(down, abs=1e-12)


def test_apo_directions() -> None:
    """At the reference the slope of sigma is beta / 4: zero moves both, down moves the rejected response alone."""
    for formula, chosen, rejected in ((apo_zero, -0.125, 0.125), (apo_down, 0.0, 0.125)):
        batch = at_reference()
        formula(batch, beta=0.5).total.backward()
        assert batch.chosen.grad is not None and batch.chosen.grad.tolist() == pytest.approx([chosen] * 2, abs=1e-12)
        assert batch.rejected.grad is not None
        assert batch.rejected.grad.tolist() == pytest.approx([rejected] * 2, abs=1e-12)
    # Once the chosen response leads (h = 5, r_w = 1), apo_down takes it down: 0.5 (sigma'(0.5) - sigma'(2.5)) > 0.
    batch = pairs(rejected=(-15.0, -8.5))
    apo_down(batch, beta=0.5).total.backward()
    slope = 0.5 * (sigma(0.5) * sigma(-0.5) - sigma(2.5) * sigma(-2.5))
    assert batch.chosen.grad is not None and float(batch.chosen.grad[0]) == pytest.approx(slope, abs=1e-12)
    assert slope > 0


def test_kto_pair_measures_each_half_by_the_other() -> None:
    # z_w = mean(1, 0.5) = 0.75, z_l = mean(-1, 1) = 0: 1 - sigma(0.5 (r_w - 0)) + 1 - sigma(0.5 (0.75 - r_l))
    expected = 4 - sigma(0.5) - sigma(0.25) - sigma(0.5 * 1.75) - sigma(0.5 * -0.25)
    loss = kto_pair(pairs(), beta=0.5)
    assert loss.total.item() == pytest.approx(expected, abs=1e-12)
    assert means(loss)["kl/chosen"] == pytest.approx(0.75)


def test_kto_pair_clips_at_zero_and_passes_no_gradient_through() -> None:
    # r_w = (-3, 0.5): mean -1.25, clipped to 0.
    batch = pairs(chosen=(-14.0, -4.0))
    loss = kto_pair(batch, beta=0.5)
    expected = 4 - sigma(-1.5) - sigma(0.25) - sigma(0.5) - sigma(-0.5)
    assert loss.total.item() == pytest.approx(expected, abs=1e-12)
    batch = pairs()
    kto_pair(batch, beta=0.5).total.backward()
    # d/d r_w = -beta sigma'(beta r_w): only its own term
    own = [-0.5 * sigma(0.5) * sigma(-0.5), -0.5 * sigma(0.25) * sigma(-0.25)]
    assert batch.chosen.grad is not None and batch.chosen.grad.tolist() == pytest.approx(own, abs=1e-12)


def test_values_at_the_reference() -> None:
    same = at_reference()
    for formula, constant in (
        (nca, 2 * LOG2), (bco, 2 * LOG2), (bco_shifted, 2 * LOG2), (apo_zero, 1.0), (apo_down, 1.0), (kto_pair, 1.0),
    ):  # fmt: skip
        assert formula(same, beta=0.3).total.item() == pytest.approx(2 * constant, abs=1e-12), formula.__name__
    assert sppo(same, beta=0.3).total.item() == pytest.approx(2 / (2 * 0.09), abs=1e-9)
