"""Config to online RL: the one place where an algorithm's name becomes its advantage, its formula and its unit.

objective                      advantage                              ratio             unit (divisor of the sum)
ppo                            GAE, whitened                          token             token
grpo                           group mean and deviation               token             response
dapo, bnpo                     group mean and deviation               token             token
dr_grpo                        group mean                             token             response x longest allowed
cispo                          group mean and deviation               token, weight     token
gspo, gspo_token               group mean and deviation               mean of response  response
rloo                           mean of the others                     response          response
reinforce_plus_plus            rewards to come, whitened              token             token
reinforce_plus_plus_baseline   group mean, whitened                   token             token
raft                           the best of a prompt                   none              token
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from whet.config import policy as plan
from whet.config.policy_base import Clipped
from whet.objectives import kl
from whet.objectives.advantages import best_of_group, group_advantages, leave_one_out
from whet.objectives.aggregation import Aggregation, Constant, SequenceMean, SequenceSum, TokenMean
from whet.objectives.credit import Advantages, Rollouts, best_credit, gae_credit, response_credit, return_credit
from whet.objectives.importance import sequence_weights, token_weights
from whet.objectives.loss import Loss
from whet.objectives.policy import Correction, KlTerm, PolicyFormula, Surrogate, policy_loss
from whet.objectives.ratio import RatioOf, sequence_ratio, sequence_token_ratio, token_ratio
from whet.objectives.surrogate import clipped, clipped_weights, likelihood, response_clipped
from whet.objectives.value import ValueTokens, value_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLearning:
    """An algorithm of online RL, and what it asks of those who carry it out."""

    advantages: Callable[[Rollouts], Advantages]
    """Once a step, on its rollouts."""
    whiten: bool
    """Afterwards `whitened` by the moments of all ranks' rollouts of the step."""
    formula: PolicyFormula
    aggregation: Aggregation
    """The unit: `aggregation.units(responses, tokens)` of all that may be trained on, of advantage 0 or not."""
    value: Callable[[ValueTokens], Loss] | None
    """Loss of the value function by token, its weight not in it."""
    value_weight: float
    reward_penalty: kl.Estimator | None
    """Estimator of the KL that is taken off the reward, times the controller's weight; None where none is."""
    controller: kl.KlController
    """Weight of the KL before the first step; updated once a step where it is in the reward."""


def policy_learning(objective: plan.PolicyObjective, *, max_new_tokens: int) -> PolicyLearning:
    """`max_new_tokens` is the longest response allowed, which Dr. GRPO divides by."""
    method = _method(objective, max_new_tokens)
    in_loss = objective.kl_weight > 0 and objective.kl_in == "loss"
    in_reward = objective.kl_weight > 0 and objective.kl_in == "reward"
    estimator = _estimator(objective)
    term = KlTerm(estimator=estimator, weight=objective.kl_weight, by_ratio=objective.kl_ratio) if in_loss else None
    formula = partial(
        policy_loss,
        surrogate=method.surrogate,
        aggregation=method.aggregation,
        kl=term,
        entropy_weight=objective.entropy_weight,
        correction=_correction(objective),
    )
    return PolicyLearning(
        advantages=method.advantages,
        whiten=method.whiten,
        formula=formula,
        aggregation=method.aggregation,
        value=method.value,
        value_weight=method.value_weight,
        reward_penalty=estimator if in_reward else None,
        controller=_controller(objective),
    )


@dataclass(frozen=True, slots=True)
class _Method:
    advantages: Callable[[Rollouts], Advantages]
    surrogate: Surrogate
    aggregation: Aggregation
    whiten: bool = False
    value: Callable[[ValueTokens], Loss] | None = None
    value_weight: float = 0.0


def _method(objective: plan.PolicyObjective, max_new_tokens: int) -> _Method:
    match objective:
        case plan.Ppo(gamma=gamma, lam=lam, whiten=whiten, value_clip=value_clip, value_weight=weight):
            gae = partial(gae_credit, gamma=gamma, lam=lam)
            return _Method(
                gae, _clip(objective, token_ratio), TokenMean(), whiten, partial(value_loss, clip=value_clip), weight
            )
        case plan.Grpo(divide_by_std=by_std):
            return _Method(_group(by_std), _clip(objective, token_ratio), SequenceMean())
        case plan.Dapo(divide_by_std=by_std) | plan.Bnpo(divide_by_std=by_std):
            return _Method(_group(by_std), _clip(objective, token_ratio), TokenMean())
        case plan.DrGrpo(divide_by_std=by_std):
            return _Method(_group(by_std), _clip(objective, token_ratio), Constant(max_new_tokens))
        case plan.Cispo(divide_by_std=by_std, clip_low=low, clip_high=high):
            return _Method(_group(by_std), partial(clipped_weights, clip_low=low, clip_high=high), TokenMean())
        case plan.Gspo(divide_by_std=by_std):
            return _Method(_group(by_std), _clip(objective, sequence_ratio), SequenceMean())
        case plan.GspoToken(divide_by_std=by_std):
            return _Method(_group(by_std), _clip(objective, sequence_token_ratio), SequenceMean())
        case plan.Rloo(clip_low=low, clip_high=high, clip_delta=delta):
            others = partial(response_credit, baseline=leave_one_out)
            whole = partial(response_clipped, clip_low=low, clip_high=high, clip_delta=delta)
            return _Method(others, whole, SequenceSum())
        case plan.ReinforcePlusPlus():
            return _Method(return_credit, _clip(objective, token_ratio), TokenMean(), whiten=True)
        case plan.ReinforcePlusPlusBaseline():
            return _Method(_group(False), _clip(objective, token_ratio), TokenMean(), whiten=True)
        case plan.Raft():
            return _Method(partial(best_credit, baseline=best_of_group), likelihood, TokenMean())


def _group(divide_by_std: bool) -> Callable[[Rollouts], Advantages]:
    return partial(response_credit, baseline=partial(group_advantages, divide_by_std=divide_by_std))


def _clip(objective: Clipped, ratio: RatioOf) -> Surrogate:
    return partial(
        clipped,
        ratio=ratio,
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        clip_delta=objective.clip_delta,
    )


def _estimator(objective: plan.PolicyObjective) -> kl.Estimator:
    match objective.kl_estimator:
        case "k1":
            return kl.k1
        case "k2":
            return kl.k2
        case "k3":
            return kl.k3


def _correction(objective: plan.PolicyObjective) -> Correction | None:
    cap, floor = objective.importance_cap, objective.importance_floor
    match objective.importance_correction:
        case "none":
            return None
        case "token_truncate":
            return partial(token_weights, beyond="truncate", cap=cap, floor=floor)
        case "token_mask":
            return partial(token_weights, beyond="mask", cap=cap, floor=floor)
        case "sequence_truncate":
            return partial(sequence_weights, beyond="truncate", cap=cap, floor=floor)
        case "sequence_mask":
            return partial(sequence_weights, beyond="mask", cap=cap, floor=floor)


def _controller(objective: plan.PolicyObjective) -> kl.KlController:
    match objective:
        case plan.Ppo(adaptive_kl=plan.AdaptiveKlWeight(target=target, horizon=horizon)):
            return kl.AdaptiveKl(weight=objective.kl_weight, target=target, horizon=horizon)
        case _:
            return kl.FixedKl(objective.kl_weight)
