"""Objectives in plans: published settings, what is refused, and the name that has to say what it means."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from whet.config import pairwise as plan
from whet.config.load import dump_plan, load_plan
from whet.config.mixture import Mixture, Pai
from whet.config.objective import BradleyTerry, Kto, RewardWeighted, SoftPreference
from whet.errors import ConfigError


def objective_of(*overrides: str, kind: str = "dpo") -> Any:
    stage = load_plan(None, ["model.path=m", "data.files=f.jsonl", *overrides], kind=kind).stages[0]
    return stage.objective


def test_defaults_are_the_published_settings() -> None:
    betas = {
        plan.Sigmoid: 0.1, plan.Robust: 0.01, plan.Hinge: 0.05, plan.Exo: 0.1, plan.Discopop: 0.05,
        plan.SigmoidNorm: 5.0, plan.Nca: 0.01, plan.Bco: 0.01, plan.Sppo: 0.001, plan.ApoZero: 0.1, plan.ApoDown: 0.1,
        plan.Simpo: 2.0, plan.Cpo: 0.1, Kto: 0.1,
    }  # fmt: skip
    for member, beta in betas.items():
        assert member().beta == beta, member
    assert plan.Simpo().gamma / plan.Simpo().beta == 0.5
    assert (plan.Cdpo().label_smoothing, plan.Robust().label_smoothing, plan.Exo().label_smoothing) == (0.1, 0.1, 1e-3)
    assert (plan.Orpo().odds_weight, plan.Orpo().nll_weight, plan.Cpo().nll_weight) == (0.1, 1.0, 1.0)
    assert (BradleyTerry().center, RewardWeighted().kl_weight, SoftPreference().temperature) == (0.0, 0.0, 1.0)
    assert BradleyTerry().margin == "column"
    assert [(part.objective.type, part.weight) for part in Mixture().parts] == [
        ("sigmoid", 0.8), ("bco", 0.2), ("nll", 1.0),
    ]  # fmt: skip


def test_a_mixture_is_written_as_a_list() -> None:
    found = objective_of(
        "objective.type=mixture",
        "objective.parts=[{objective: {type: simpo, beta: 3.0}}, {objective: {type: nll}, weight: 0.5}]",
    )
    assert found.parts[0].objective == plan.Simpo(beta=3.0)
    assert found.parts[1].weight == 0.5


def test_a_mixture_survives_its_dump() -> None:
    written = load_plan(None, ["model.path=m", "data.files=f.jsonl", "objective.type=mixture"], kind="dpo")
    assert written.stages[0].objective == Mixture()  # type: ignore[union-attr]
    assert "weight: 0.8" in dump_plan(written)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["objective.type=mixture", "objective.parts=[]"], "must have at least 1 entry"),
        (["objective.type=mixture", "objective.parts=[{objective: {type: mixture}}]"], "must be one of sigmoid, cdpo"),
        (["objective.type=exo", "objective.label_smoothing=0"], "must be greater than 0"),
        (["objective.type=robust", "objective.label_smoothing=0.5"], "must be less than 0.5"),
        (["objective.type=simpo", "objective.divergence=js"], "objective.divergence"),
        (["objective.type=sigmoid", "objective.divergence=alpha", "objective.divergence_alpha=1"], "less than 1"),
    ],
)
def test_what_cannot_be_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        objective_of(*overrides)


def test_no_baseline_has_no_deviation() -> None:
    with pytest.raises(ValueError, match="divide_by_std needs a baseline"):
        RewardWeighted(baseline="none", divide_by_std=True)


def test_pai_without_a_meaning_is_refused_with_the_choices() -> None:
    said = r"objective: no paper .* set `means` .*: kto_pair, bco, exo, nca, apo_zero, apo_down$"
    with pytest.raises(ConfigError, match=said) as error:
        objective_of("objective.type=pai")
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"must be one of kto_pair, bco.*found 'sigmoid'"):
        objective_of("objective.type=pai", "objective.means=sigmoid")


def test_pai_warns_and_names_what_it_trains() -> None:
    with pytest.warns(UserWarning, match="objective `pai` is no published loss.*`bco`") as said:
        found = objective_of("objective.type=pai", "objective.means=bco", "objective.beta=0.2")
    assert len(said) == 1
    assert found.meant == plan.Bco(beta=0.2)


def test_pai_warns_once() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(3):
            assert Pai(means="apo_zero").meant == plan.ApoZero()
    assert len(said) == 1
