"""Sums of formulas over the same pairs."""

from __future__ import annotations

from functools import partial

import pytest

from tests.objectives.pairs import means, pairs, softplus
from whet.objectives.absolute import bco
from whet.objectives.mixture import Part, mixture, with_nll
from whet.objectives.pairwise import sigmoid
from whet.objectives.reference_free import chosen_nll


def mpo() -> list[Part]:
    return [
        Part("sigmoid", 0.8, partial(sigmoid, beta=0.5)),
        Part("bco", 0.2, partial(bco, beta=1.0)),
        Part("nll", 1.0, chosen_nll),
    ]


def test_mixture_is_the_weighted_sum() -> None:
    # 0.8 (log(1+e^-1) + log(1+e^0.25)) + 0.2 (log(1+e^-1) + log(1+e^-1) + log(1+e^-0.5) + log(1+e^1)) + 4
    dpo = softplus(-1.0) + softplus(0.25)
    classifier = 2 * softplus(-1.0) + softplus(-0.5) + softplus(1.0)
    loss = mixture(pairs(), parts=mpo())
    assert loss.total.item() == pytest.approx(0.8 * dpo + 0.2 * classifier + 4.0, abs=1e-12)
    found = means(loss)
    assert found["loss/sigmoid"] == pytest.approx(dpo / 2)
    assert found["loss/bco"] == pytest.approx(classifier / 2)
    assert found["loss/nll"] == found["nll_loss"] == pytest.approx(2.0)


def test_rewards_are_those_of_the_first_part() -> None:
    assert means(mixture(pairs(), parts=mpo()))["rewards/chosen"] == pytest.approx(0.5 * 0.75)
    turned = [mpo()[1], mpo()[0]]
    assert means(mixture(pairs(), parts=turned))["rewards/chosen"] == pytest.approx(1.0 * 0.75)


def test_iterative_rpo_adds_the_likelihood_of_the_chosen_response() -> None:
    loss = with_nll(pairs(), formula=partial(sigmoid, beta=0.5), weight=0.5)
    assert loss.total.item() == pytest.approx(softplus(-1.0) + softplus(0.25) + 0.5 * 4.0, abs=1e-12)
    assert means(loss)["nll_loss"] == pytest.approx(2.0)
