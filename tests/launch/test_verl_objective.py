from __future__ import annotations

from typing import Any

import pytest

from whet.config import policy as plan
from whet.errors import ConfigError
from whet.launch.verl.keys import ACTOR
from whet.launch.verl.objective import objective_settings


def settings(objective: plan.PolicyObjective) -> dict[str, Any]:
    """Without the prefix, which is the same for most."""
    return {
        key.removeprefix(f"{ACTOR}."): value for key, value in objective_settings(objective, max_new_tokens=48).items()
    }


@pytest.mark.parametrize(
    ("objective", "estimator", "loss", "aggregation"),
    [
        (plan.Ppo(), "gae", "vanilla", "token-mean"),
        (plan.Grpo(), "grpo", "vanilla", "seq-mean-token-mean"),
        (plan.Dapo(), "grpo", "vanilla", "token-mean"),
        (plan.Bnpo(), "grpo", "vanilla", "token-mean"),
        (plan.DrGrpo(), "grpo", "vanilla", "seq-mean-token-sum-norm"),
        (plan.Cispo(), "grpo", "cispo", "token-mean"),
        (plan.Gspo(), "grpo", "gspo", "seq-mean-token-mean"),
        (plan.GspoToken(), "grpo", "gspo", "seq-mean-token-mean"),
        (plan.Rloo(), "rloo", "vanilla", "seq-mean-token-sum"),
        (plan.ReinforcePlusPlus(), "reinforce_plus_plus", "vanilla", "token-mean"),
        (plan.ReinforcePlusPlusBaseline(), "reinforce_plus_plus_baseline", "vanilla", "token-mean"),
    ],
    ids=lambda value: getattr(value, "type", None),
)
def test_each_objective(objective: plan.PolicyObjective, estimator: str, loss: str, aggregation: str) -> None:
    found = settings(objective)
    assert found["algorithm.adv_estimator"] == estimator
    assert (found["policy_loss.loss_mode"], found["loss_agg_mode"]) == (loss, aggregation)
    assert {"clip_ratio_low", "clip_ratio_high"} <= found.keys(), "neither may be left to its default"


def test_gspo_has_its_four_settings() -> None:
    found = settings(plan.Gspo())
    assert found["policy_loss.loss_mode"] == "gspo"
    assert found["loss_agg_mode"] == "seq-mean-token-mean"
    assert (found["clip_ratio_low"], found["clip_ratio_high"]) == (3e-4, 4e-4)
    assert "clip_ratio_c" not in found, "verl's gspo does not read it"


def test_the_second_bound_is_out_of_reach_where_ours_has_none() -> None:
    assert settings(plan.Grpo())["clip_ratio_c"] == 1e9
    assert settings(plan.Grpo(clip_delta=3.0))["clip_ratio_c"] == 3.0


def test_dr_grpo_divides_by_the_longest_answer_and_not_by_the_deviation() -> None:
    found = settings(plan.DrGrpo())
    assert found["loss_scale_factor"] == 48
    assert found["algorithm.norm_adv_by_std_in_grpo"] is False


def test_dynamic_sampling() -> None:
    found = settings(plan.Dapo())
    assert found["algorithm.filter_groups.enable"] is True and found["algorithm.filter_groups.metric"] == "reward"
    assert "algorithm.filter_groups.enable" not in settings(plan.Grpo())


@pytest.mark.parametrize(
    ("objective", "in_loss", "in_reward", "key", "value"),
    [
        (plan.Grpo(), True, False, "kl_loss_type", "low_var_kl"),
        (plan.Grpo(kl_estimator="k2", kl_weight=0.5), True, False, "kl_loss_coef", 0.5),
        (plan.Grpo(kl_weight=0.0), False, False, "algorithm.adv_estimator", "grpo"),
        (plan.Grpo(kl_in="reward"), False, True, "algorithm.kl_penalty", "low_var_kl"),
        (plan.Ppo(), False, True, "algorithm.kl_ctrl.kl_coef", 0.02),
        (plan.Ppo(), False, True, "algorithm.kl_penalty", "kl"),
    ],
)  # fmt: skip
def test_where_the_kl_goes(
    objective: plan.PolicyObjective, in_loss: bool, in_reward: bool, key: str, value: object
) -> None:
    found = settings(objective)
    assert (found["use_kl_loss"], found["algorithm.use_kl_in_reward"]) == (in_loss, in_reward)
    assert found[key] == value


def test_the_samplers_correction() -> None:
    found = settings(plan.Grpo(importance_correction="token_truncate", importance_cap=4.0))
    assert found["algorithm.rollout_correction.rollout_is"] == "token"
    assert found["algorithm.rollout_correction.rollout_is_threshold"] == 4.0
    assert settings(plan.Grpo())["algorithm.rollout_correction.rollout_is"] is None


@pytest.mark.parametrize(
    ("objective", "key"),
    [
        (plan.Raft(), "objective.type"),
        (plan.Rloo(minibatches=2), "objective.minibatches"),
        (plan.Rloo(num_iterations=3), "objective.num_iterations"),
        (plan.Ppo(whiten=False), "objective.whiten"),
        (plan.Ppo(adaptive_kl=plan.AdaptiveKlWeight()), "objective.adaptive_kl"),
        (plan.Grpo(kl_ratio=True), "objective.kl_ratio"),
        (plan.Gspo(clip_delta=3.0), "objective.clip_delta"),
        (plan.Grpo(importance_correction="token_mask"), "objective.importance_correction"),
        (plan.Grpo(importance_correction="token_truncate", importance_floor=0.5), "objective.importance_correction"),
    ],
)  # fmt: skip
def test_what_verl_computes_otherwise_is_refused(objective: plan.PolicyObjective, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings(objective)
    assert error.value.field == key
