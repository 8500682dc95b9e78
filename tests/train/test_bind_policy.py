"""Every number of a plan reaches its formula, and every algorithm has the advantage, ratio and unit of its paper."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

from tests.objectives.tokens import means, part, random_tokens, tensor, tokens
from whet.config import policy as plan
from whet.objectives import kl
from whet.objectives.aggregation import Constant, SequenceMean, SequenceSum, TokenMean
from whet.objectives.credit import Rollouts
from whet.objectives.value import ValueTokens
from whet.train.bind_policy import PolicyLearning, policy_learning

MEMBERS = get_args(get_args(plan.PolicyObjective)[0])


def bound(objective: plan.PolicyObjective) -> PolicyLearning:
    return policy_learning(objective, max_new_tokens=10)


def rollouts(rewards: tuple[float, ...] = (4.0, 1.0, 1.0)) -> Rollouts:
    """Three responses to a prompt, of one, two and two tokens."""
    return Rollouts(
        rewards=tensor(*rewards),
        groups=torch.tensor([0, 0, 0]),
        rows=torch.tensor([0, 1, 1, 2, 2]),
        lengths=torch.tensor([1, 2, 2]),
        values=tensor(1, 0, 0, 0, 0),
    )


@pytest.mark.parametrize(
    ("objective", "advantages", "aggregation", "whiten"),
    [
        (plan.Ppo(lam=1.0), (3, 1, 1, 1, 1), TokenMean(), True),
        (plan.Ppo(gamma=0.5, lam=1.0, whiten=False), (3, 0.5, 1, 0.5, 1), TokenMean(), False),
        (plan.Ppo(lam=0.0), (3, 0, 1, 0, 1), TokenMean(), True),
        (plan.Grpo(divide_by_std=False), (2, -1, -1, -1, -1), SequenceMean(), False),
        (plan.DrGrpo(), (2, -1, -1, -1, -1), Constant(10), False),
        (plan.Rloo(), (3, -1.5, -1.5, -1.5, -1.5), SequenceSum(), False),
        (plan.ReinforcePlusPlus(), (4, 1, 1, 1, 1), TokenMean(), True),
        (plan.ReinforcePlusPlusBaseline(), (2, -1, -1, -1, -1), TokenMean(), True),
        (plan.Raft(), (1, 0, 0, 0, 0), TokenMean(), False),
    ],
)
def test_advantages(objective, advantages: tuple[float, ...], aggregation, whiten: bool) -> None:
    found = bound(objective)
    torch.testing.assert_close(found.advantages(rollouts()).tokens, tensor(*advantages))
    assert (found.aggregation, found.whiten) == (aggregation, whiten)


@pytest.mark.parametrize("member", [plan.Grpo, plan.Dapo, plan.Bnpo, plan.Cispo, plan.Gspo, plan.GspoToken])
def test_advantages_over_the_deviation(member) -> None:
    found = bound(member()).advantages(rollouts()).tokens
    torch.testing.assert_close(found, tensor(2, -1, -1, -1, -1) / math.sqrt(3), rtol=1e-5, atol=0.0)
    plain = bound(member(divide_by_std=False)).advantages(rollouts()).tokens
    torch.testing.assert_close(plain, tensor(2, -1, -1, -1, -1))


@pytest.mark.parametrize(
    ("objective", "total"),
    [
        # ratios 1.5, 1 (A = 1) and 0.5, 2, 1 (A = -1): see tests/objectives/test_policy.py
        (plan.Ppo(), 1.6),
        (plan.Ppo(clip_high=0.4), 1.4),
        (plan.Ppo(clip_low=0.1), 1.7),
        (plan.Ppo(clip_delta=1.5), 1.1),
        (plan.Grpo(kl_weight=0.0), -2.2 / 2 + 3.8 / 3),
        (plan.Dapo(), -1.28 - 1 + 3.8),
        (plan.Bnpo(clip_delta=1.5), 1.1),
        (plan.DrGrpo(), 1.6),
        (plan.Cispo(clip_high=0.4), 1.4 * 1 + 1 * 2 - 0.5 * 3 - 1.4 * 0.5 - 1 * 1.5),
        (plan.Cispo(clip_low=0.2, clip_high=0.4), 1.4 * 1 + 1 * 2 - 0.8 * 3 - 1.4 * 0.5 - 1 * 1.5),
        (plan.Gspo(), -1.0004 + 1),
        (plan.GspoToken(clip_high=0.1), -1.1 + 1),
        (plan.Rloo(), -1.2 + 1),
        (plan.Rloo(clip_high=0.3), -1.3 + 1),
        (plan.ReinforcePlusPlus(clip_high=0.1), 1.7),
        (plan.ReinforcePlusPlusBaseline(kl_weight=0.0, clip_low=0.4), 1.4),
        (plan.Raft(), 3.0 - 5.0),
    ],
)
def test_formulas(objective, total: float) -> None:
    assert bound(objective).formula(tokens()).total.item() == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_in_the_loss(estimator: str) -> None:
    given = tokens()
    given = replace(given, reference_logprobs=given.logprobs.detach() + math.log(2))
    ln2 = math.log(2)
    value = {"k1": -ln2, "k2": ln2**2 / 2, "k3": 1 - ln2}[estimator]
    found = bound(plan.Dapo(kl_weight=0.5, kl_estimator=estimator))
    without = bound(plan.Dapo()).formula(given).total.item()
    assert found.formula(given).total.item() == pytest.approx(without + 0.5 * 5 * value)
    assert means(found.formula(given))["kl"] == pytest.approx(value)
    assert found.reward_penalty is None
    factored = bound(plan.Dapo(kl_weight=0.5, kl_estimator=estimator, kl_ratio=True)).formula(given).total.item()
    assert factored == pytest.approx(without + 0.5 * 6 * value)


def test_kl_in_the_reward() -> None:
    found = bound(plan.Grpo(kl_in="reward", kl_estimator="k2"))
    assert found.reward_penalty is kl.k2 and found.controller == kl.FixedKl(0.04)
    assert "kl" not in found.formula(tokens()).metrics
    assert bound(plan.Ppo()).reward_penalty is kl.k1
    assert bound(plan.Rloo(kl_weight=0.0)).reward_penalty is None


def test_adaptive_kl() -> None:
    objective = plan.Ppo(adaptive_kl=plan.AdaptiveKlWeight(target=0.1, horizon=100.0))
    assert bound(objective).controller == kl.AdaptiveKl(weight=0.02, target=0.1, horizon=100.0)
    assert bound(plan.Ppo(kl_weight=0.3)).controller == kl.FixedKl(0.3)


def test_value_loss() -> None:
    given = ValueTokens(values=tensor(1.0), old_values=tensor(0.0), returns=tensor(1.0))
    ppo = bound(plan.Ppo(value_clip=0.5, value_weight=0.3))
    assert ppo.value is not None and ppo.value(given).total.item() == pytest.approx(0.125)
    assert ppo.value_weight == 0.3
    plain = bound(plan.Ppo(value_clip=None)).value
    assert plain is not None and plain(given).total.item() == 0.0
    assert bound(plan.Grpo()).value is None


def test_entropy_bonus() -> None:
    given = tokens(entropy=tensor(1, 2, 3, 4, 5))
    found = bound(plan.Dapo(entropy_weight=0.1)).formula(given).total.item()
    assert found == pytest.approx(bound(plan.Dapo()).formula(given).total.item() - 1.5)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("none", (1, 1, 1, 1, 1)), ("token_truncate", (2, 1, 3, 0.5, 1)), ("token_mask", (2, 1, 0, 0, 1)),
        ("sequence_truncate", (2, 2, 1, 1, 1)), ("sequence_mask", (2, 2, 1, 1, 1)),
    ],
)  # fmt: skip
def test_importance_correction(name: str, weights: tuple[float, ...]) -> None:
    given = tokens()
    given = replace(given, sampler_logprobs=given.old_logprobs - tensor(2, 1, 4, 0.25, 1).log())
    objective = plan.Ppo(importance_correction=name, importance_cap=3.0, importance_floor=0.5)
    expected = (tensor(-1.2, -1.0, 0.8, 2.0, 1.0) * tensor(*weights)).sum().item()
    assert bound(objective).formula(given).total.item() == pytest.approx(expected)


@pytest.mark.parametrize("member", MEMBERS)
def test_equal_rewards_and_no_kl_give_no_gradient(member) -> None:
    """Not so with a value function, which may have expected something else, and not where the best is imitated."""
    if member in (plan.Ppo, plan.Raft):
        return
    objective = bound(member(kl_weight=0.0))
    found = objective.advantages(rollouts((0.1, 0.1, 0.1)))
    if objective.whiten:
        found = found.whitened(found.moments())
    given = random_tokens((1, 2, 2), 0)
    given = replace(given, advantages=found.tokens)
    slope = torch.autograd.grad(objective.formula(given).total, given.logprobs)[0]
    assert float(slope.abs().max()) <= (1e-9 if objective.whiten else 0.0)


@pytest.mark.parametrize("member", MEMBERS)
def test_a_step_may_be_split(member) -> None:
    objective = bound(member(kl_weight=0.1, entropy_weight=0.1, importance_correction="sequence_truncate"))
    whole = random_tokens((3, 1, 4, 2), 1)
    pieces = [part(whole, [3, 1]), part(whole, [0, 2])]
    expected = torch.autograd.grad(objective.formula(whole).total, whole.logprobs)[0]
    found = torch.autograd.grad(sum(objective.formula(piece).total for piece in pieces), whole.logprobs)[0]
    torch.testing.assert_close(found, expected)


def test_names() -> None:
    assert {member().type for member in MEMBERS} == {
        "ppo", "grpo", "dapo", "dr_grpo", "bnpo", "cispo", "gspo", "gspo_token", "rloo", "reinforce_plus_plus",
        "reinforce_plus_plus_baseline", "raft",
    }  # fmt: skip
