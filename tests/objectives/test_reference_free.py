"""Formulas without a reference: mean log-probs chosen (-2, -2), rejected (-3, -0.75), see `pairs`."""

from __future__ import annotations

import math

import pytest
import torch

from tests.objectives.pairs import means, pairs, softplus
from whet.objectives.reference_free import chosen_nll, cpo, orpo, simpo


def test_simpo_asks_for_a_lead_of_gamma() -> None:
    # beta 2: 2 (-2 + 3) - 0.5 = 1.5 and 2 (-2 + 0.75) - 0.5 = -3
    loss = simpo(pairs(), beta=2.0, gamma=0.5)
    assert loss.total.item() == pytest.approx(softplus(-1.5) + softplus(3.0), abs=1e-12)
    smoothed = simpo(pairs(), beta=2.0, gamma=0.5, label_smoothing=0.1).total.item()
    expected = 0.9 * (softplus(-1.5) + softplus(3.0)) + 0.1 * (softplus(1.5) + softplus(-3.0))
    assert smoothed == pytest.approx(expected, abs=1e-12)
    # rewards are beta times the mean log-prob: chosen -4, -4; rejected -6, -1.5
    found = means(loss)
    assert (found["rewards/chosen"], found["rewards/rejected"]) == (pytest.approx(-4.0), pytest.approx(-3.75))
    assert found["rewards/accuracies"] == 0.5


def test_simpo_on_equal_responses_is_its_margin_alone() -> None:
    same = pairs(chosen=(-10.0, -4.0), rejected=(-8.0, -8.0))  # mean -2 everywhere
    assert simpo(same, beta=2.0, gamma=1.0).total.item() == pytest.approx(2 * softplus(1.0), abs=1e-12)


def test_cpo_is_dpo_against_a_uniform_reference() -> None:
    # beta 0.5: log-probs lead by 2 and -1
    loss = cpo(pairs(), beta=0.5)
    assert loss.total.item() == pytest.approx(softplus(-1.0) + softplus(0.5), abs=1e-12)
    assert means(loss)["rewards/chosen"] == pytest.approx(0.5 * -7.0)


def test_orpo_compares_odds() -> None:
    # P = e^-2 and e^-3 on the first pair, e^-2 and e^-0.75 on the second
    def odds(mean: float) -> float:
        return math.exp(mean) / (1 - math.exp(mean))

    first, second = math.log(odds(-2.0) / odds(-3.0)), math.log(odds(-2.0) / odds(-0.75))
    loss = orpo(pairs(), odds_weight=0.1)
    assert loss.total.item() == pytest.approx(0.1 * (softplus(-first) + softplus(-second)), abs=1e-12)
    found = means(loss)
    assert found["log_odds_chosen"] == pytest.approx((first + second) / 2)
    assert found["log_odds_ratio"] == pytest.approx(-(softplus(-first) + softplus(-second)) / 2)
    assert found["rewards/chosen"] == pytest.approx(0.1 * -2.0)


def test_orpo_at_equal_probabilities_is_log_two() -> None:
    same = pairs(chosen=(-10.0, -4.0), rejected=(-8.0, -8.0))
    assert orpo(same, odds_weight=1.0).total.item() == pytest.approx(2 * math.log(2), abs=1e-12)


def test_orpo_survives_a_response_known_by_heart() -> None:
    batch = pairs(chosen=(0.0, -4.0))
    loss = orpo(batch, odds_weight=0.1)
    loss.total.backward()
    assert math.isfinite(loss.total.item())
    assert batch.chosen.grad is not None and bool(torch.isfinite(batch.chosen.grad).all())


def test_nll_is_per_token_of_each_response() -> None:
    # 10/5 + 4/2
    loss = chosen_nll(pairs())
    assert loss.total.item() == pytest.approx(4.0, abs=1e-12)
    assert means(loss)["nll_loss"] == pytest.approx(2.0)


def test_the_reference_is_not_read() -> None:
    nan = (math.nan, math.nan)
    for formula in (
        lambda p: simpo(p, beta=2.0, gamma=1.0), lambda p: cpo(p, beta=0.1), lambda p: orpo(p, odds_weight=0.1),
        chosen_nll,
    ):  # fmt: skip
        without = formula(pairs(ref_chosen=nan, ref_rejected=nan))
        assert without.total.item() == pytest.approx(formula(pairs()).total.item(), abs=1e-15)
        assert not any(math.isnan(value) for value in means(without).values())
