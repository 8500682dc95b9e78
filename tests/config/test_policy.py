"""Objectives of online RL in plans: published settings, what each needs, and what is refused."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from whet.config import policy as plan

MEMBERS = get_args(get_args(plan.PolicyObjective)[0])


def test_defaults_are_the_published_settings() -> None:
    kl = {
        plan.Ppo: (0.02, "reward", "k1"), plan.Grpo: (0.04, "loss", "k3"), plan.Dapo: (0.0, "loss", "k3"),
        plan.DrGrpo: (0.0, "loss", "k3"), plan.Bnpo: (0.0, "loss", "k3"), plan.Cispo: (0.0, "loss", "k3"),
        plan.Gspo: (0.0, "loss", "k3"), plan.GspoToken: (0.0, "loss", "k3"), plan.Rloo: (0.03, "reward", "k1"),
        plan.ReinforcePlusPlus: (0.01, "reward", "k1"), plan.ReinforcePlusPlusBaseline: (0.001, "loss", "k2"),
        plan.Raft: (0.0, "loss", "k3"),
    }  # fmt: skip
    for member in MEMBERS:
        found = member()
        assert (found.kl_weight, found.kl_in, found.kl_estimator) == kl[member], member
    clips = {plan.Dapo: (0.2, 0.28), plan.Gspo: (3e-4, 4e-4), plan.GspoToken: (3e-4, 4e-4), plan.Cispo: (None, 4.0)}
    for member in set(MEMBERS) - {plan.Raft}:
        assert (member().clip_low, member().clip_high) == clips.get(member, (0.2, 0.2)), member
    assert (plan.Gspo().minibatches, plan.Grpo().minibatches, plan.Ppo().passes, plan.Grpo().passes) == (4, 1, 4, 1)
    assert (plan.Ppo().gamma, plan.Ppo().lam, plan.Ppo().value_clip, plan.Ppo().value_weight) == (1.0, 0.95, 0.2, 0.1)
    assert plan.Dapo().filter_groups and not plan.Grpo().filter_groups and not plan.DrGrpo().divide_by_std


def test_what_each_needs() -> None:
    alone = {plan.Ppo, plan.ReinforcePlusPlus}
    for member in MEMBERS:
        assert member().needs_group == (member not in alone)
        assert member().needs_values == (member is plan.Ppo)
        assert member(kl_weight=0.1).needs_reference and not member(kl_weight=0.0).needs_reference


def test_chosen_by_type() -> None:
    found = TypeAdapter(plan.PolicyObjective).validate_python({"type": "grpo", "kl_weight": 0.0, "num_iterations": 2})
    assert isinstance(found, plan.Grpo) and found.passes == 2
    adaptive = {"type": "ppo", "kl_weight": 0.02, "adaptive_kl": {"target": 0.1}}
    ppo = TypeAdapter(plan.PolicyObjective).validate_python(adaptive)
    assert isinstance(ppo, plan.Ppo) and ppo.adaptive_kl == plan.AdaptiveKlWeight(target=0.1)


@pytest.mark.parametrize(
    ("member", "settings", "says"),
    [
        (plan.Ppo, {"adaptive_kl": {"target": 1.0}, "kl_weight": 0.0}, "start above"),
        (plan.Ppo, {"adaptive_kl": {"target": 1.0}, "kl_in": "loss"}, "kl_in=reward"),
        (plan.Ppo, {"adaptive_kl": {"target": 0.0}}, "greater than 0"),
        (plan.Grpo, {"clip_delta": 1.1}, "must exceed"),
        (plan.Dapo, {"clip_delta": 1.28}, "must exceed"),
        (plan.Grpo, {"kl_in": "reward", "kl_ratio": True}, "kl_in=loss"),
        (plan.Grpo, {"importance_cap": 1.0}, "greater than 1"),
        (plan.Grpo, {"beta": 0.1}, "Extra inputs"),
        (plan.Grpo, {"kl_weight": -0.1}, "greater than or equal to 0"),
    ],
)
def test_what_is_refused(member, settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        member(**settings)


def test_every_field_is_documented() -> None:
    for member in MEMBERS:
        assert member.__doc__
        for name, field in member.model_fields.items():
            assert field.description or name == "type", f"{member.__name__}.{name}"
