"""An objective of whet's as verl's estimator, loss and aggregation; what has no exact counterpart is refused.

objective                      adv_estimator                  loss_mode   loss_agg_mode
ppo                            gae                            vanilla     token-mean
grpo                           grpo                           vanilla     seq-mean-token-mean
dapo, bnpo                     grpo                           vanilla     token-mean
dr_grpo                        grpo, no division by std       vanilla     seq-mean-token-sum-norm, by the longest answer
cispo                          grpo                           cispo       token-mean
gspo, gspo_token               grpo                           gspo        seq-mean-token-mean
rloo, on its own rollouts      rloo                           vanilla     seq-mean-token-sum
reinforce_plus_plus            reinforce_plus_plus            vanilla     token-mean
reinforce_plus_plus_baseline   reinforce_plus_plus_baseline   vanilla     token-mean

`tests/oracles/test_policy_verl.py` compares each formula with verl's own.
"""

from __future__ import annotations

from typing import assert_never

from whet.config import policy as plan
from whet.config.policy_base import Clipped
from whet.launch.verl.keys import ACTOR, Settings, Value
from whet.launch.verl.refuse import refused

NO_CLIP = 1e9
"""A bound that nothing reaches, where verl always has one."""
KL = {"k1": "kl", "k2": "mse", "k3": "low_var_kl"}
"""verl's names of the estimators."""


def objective_settings(objective: plan.PolicyObjective, *, max_new_tokens: int) -> dict[str, Value]:
    """verl's keys for an objective. Raises ConfigError for what verl would compute in another way."""
    return {
        **_method(objective, max_new_tokens),
        f"{ACTOR}.ppo_epochs": objective.passes,
        f"{ACTOR}.entropy_coeff": objective.entropy_weight,
        **kl_settings(objective),
        **_correction(objective),
    }


def _method(objective: plan.PolicyObjective, max_new_tokens: int) -> Settings:
    match objective:
        case plan.Ppo():
            return {**_ppo(objective), **_loss("vanilla", "token-mean"), **_vanilla(objective)}
        case plan.Grpo():
            return {**_grpo(objective), **_loss("vanilla", "seq-mean-token-mean"), **_vanilla(objective)}
        case plan.Dapo() | plan.Bnpo():
            return {**_grpo(objective), **_loss("vanilla", "token-mean"), **_vanilla(objective)}
        case plan.DrGrpo():
            scale = {f"{ACTOR}.loss_scale_factor": max_new_tokens}
            return {**_grpo(objective), **_loss("vanilla", "seq-mean-token-sum-norm"), **scale, **_vanilla(objective)}
        case plan.Cispo(clip_low=low, clip_high=high):
            return {**_grpo(objective), **_loss("cispo", "token-mean"), **_clip(1.0 if low is None else low, high)}
        case plan.Gspo() | plan.GspoToken():
            if objective.clip_delta is not None:
                raise refused("objective.clip_delta", "verl's gspo has no such bound", found=objective.clip_delta)
            clip = _clip(objective.clip_low, objective.clip_high)
            return {**_grpo(objective), **_loss("gspo", "seq-mean-token-mean"), **clip}
        case plan.Rloo():
            _on_its_own_rollouts(objective)
            return {**_estimator("rloo"), **_loss("vanilla", "seq-mean-token-sum"), **_vanilla(objective)}
        case plan.ReinforcePlusPlus():
            estimator = {**_estimator("reinforce_plus_plus"), "algorithm.gamma": 1.0}
            return {**estimator, **_loss("vanilla", "token-mean"), **_vanilla(objective)}
        case plan.ReinforcePlusPlusBaseline():
            estimator = _estimator("reinforce_plus_plus_baseline")
            return {**estimator, **_loss("vanilla", "token-mean"), **_vanilla(objective)}
        case plan.Raft():
            raise refused("objective.type", "verl does not learn from the best response alone", found="raft")
        case _:
            assert_never(objective)


def _ppo(objective: plan.Ppo) -> Settings:
    if not objective.whiten:
        raise refused("objective.whiten", "verl always whitens the advantages of PPO", found="false")
    if objective.adaptive_kl is not None:
        raise refused(
            "objective.adaptive_kl", "verl's controller measures the KL a token, whet's a response", found="a section",
            fix="set adaptive_kl to null and choose kl_weight",
        )  # fmt: skip
    return {
        **_estimator("gae"),
        "algorithm.gamma": objective.gamma,
        "algorithm.lam": objective.lam,
        "critic.cliprange_value": NO_CLIP if objective.value_clip is None else objective.value_clip,
    }


def _on_its_own_rollouts(objective: plan.Rloo) -> None:
    """verl's ratio is a token's and ours a response's; while no ratio leaves 1 both have the same gradient."""
    if objective.minibatches > 1 or objective.passes > 1:
        raise refused(
            "objective.minibatches" if objective.minibatches > 1 else "objective.num_iterations",
            "verl's rloo has a ratio for every token, whet's one for the response: they agree in the first step of a "
            "round only",
            found=max(objective.minibatches, objective.passes), fix="set minibatches and num_iterations to 1",
        )  # fmt: skip


def _grpo(
    objective: plan.Grpo | plan.Dapo | plan.DrGrpo | plan.Bnpo | plan.Cispo | plan.Gspo | plan.GspoToken,
) -> Settings:
    settings = {**_estimator("grpo"), "algorithm.norm_adv_by_std_in_grpo": objective.divide_by_std}
    if objective.filter_groups:
        settings |= {"algorithm.filter_groups.enable": True, "algorithm.filter_groups.metric": "reward"}
    return settings


def _estimator(name: str) -> dict[str, Value]:
    return {"algorithm.adv_estimator": name}


def _loss(mode: str, aggregation: str) -> Settings:
    return {f"{ACTOR}.policy_loss.loss_mode": mode, f"{ACTOR}.loss_agg_mode": aggregation}


def _vanilla(objective: Clipped) -> Settings:
    """verl's loss has the second bound always, ours where `clip_delta` asks for it."""
    delta = NO_CLIP if objective.clip_delta is None else objective.clip_delta
    return {**_clip(objective.clip_low, objective.clip_high), f"{ACTOR}.clip_ratio_c": delta}


def _clip(low: float, high: float) -> Settings:
    return {f"{ACTOR}.clip_ratio_low": low, f"{ACTOR}.clip_ratio_high": high}


def kl_settings(objective: plan.PolicyObjective) -> Settings:
    """The KL in the loss, in the reward, or nowhere; both switches are always written."""
    if objective.kl_ratio:
        raise refused("objective.kl_ratio", "verl does not weigh the KL in the loss by the ratio", found="true")
    in_loss = objective.kl_weight > 0 and objective.kl_in == "loss"
    in_reward = objective.kl_weight > 0 and objective.kl_in == "reward"
    settings: dict[str, Value] = {f"{ACTOR}.use_kl_loss": in_loss, "algorithm.use_kl_in_reward": in_reward}
    if in_loss:
        settings |= {
            f"{ACTOR}.kl_loss_coef": objective.kl_weight,
            f"{ACTOR}.kl_loss_type": KL[objective.kl_estimator],
        }
    if in_reward:
        settings |= {
            "algorithm.kl_penalty": KL[objective.kl_estimator],
            "algorithm.kl_ctrl.type": "fixed",
            "algorithm.kl_ctrl.kl_coef": objective.kl_weight,
        }
    return settings


def _correction(objective: plan.PolicyObjective) -> Settings:
    match objective.importance_correction:
        case "none":
            return {"algorithm.rollout_correction.rollout_is": None}
        case "token_truncate" | "sequence_truncate" if objective.importance_floor == 0:
            return {
                "algorithm.rollout_correction.rollout_is": objective.importance_correction.partition("_")[0],
                "algorithm.rollout_correction.rollout_is_threshold": objective.importance_cap,
            }
        case other:
            raise refused(
                "objective.importance_correction", "verl's correction is exported where it truncates from above only",
                found=other, fix="take token_truncate or sequence_truncate with importance_floor 0, or none",
            )  # fmt: skip
