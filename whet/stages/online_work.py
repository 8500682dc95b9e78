"""What a kind of online RL brings to the loop: where its rounds come from, its batches, and its learner."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from whet.config.stage import OnlineDpoStage, OnlinePolicyStage, OnlineStage
from whet.data.render import Renderer
from whet.experience.rounds import Rounds
from whet.models.reference import Scores
from whet.models.value import PolicyScorer
from whet.rewards.reward import Reward
from whet.rollout.engine import Engine
from whet.schema.records import Prompt
from whet.stages.context import Context
from whet.stages.policy import Policy
from whet.stages.reference import reference_scores
from whet.train.bind import pairwise_objective
from whet.train.bind_policy import PolicyLearning, policy_learning
from whet.train.feed import Feed
from whet.train.learners import Learner, PairLearner
from whet.train.measuring import Measuring
from whet.train.online import OnlineFeed
from whet.train.online_pairs import OnlinePairFeed
from whet.train.parallel import Parallel
from whet.train.policy import PolicyLearner, policy_logprobs, policy_values
from whet.train.reference import measured
from whet.train.rounds import RoundOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineWork:
    learner: Learner[Any]
    feed: Feed[Any]
    order: RoundOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineGround:
    """What every kind of online work stands on."""

    context: Context
    policy: Policy
    engine: Engine
    renderer: Renderer
    reward: Reward
    prompts: Sequence[Prompt]
    parallel: Parallel
    log: Callable[[Mapping[str, Any]], None]
    """Gets a row a completion."""

    def folder(self, name: str) -> Path:
        """A folder of the stage."""
        return self.context.paths.file(name)


def online_work(stage: OnlineStage, ground: OnlineGround) -> OnlineWork:
    """Rounds, batches and formula of the stage's kind."""
    match stage:
        case OnlineDpoStage():
            return _pairs(stage, ground)
        case _:
            return _advantages(stage, ground)


def _advantages(stage: OnlinePolicyStage, ground: OnlineGround) -> OnlineWork:
    objective = stage.objective
    order = _order(stage, ground, objective.passes * objective.minibatches, replace_equal=objective.replaces_equal)
    if order.steps_per_round > 1:
        _warn_of_dropout(ground.policy.model)
    learning = policy_learning(objective, max_new_tokens=stage.rollout.max_new_tokens)
    feed = OnlineFeed(
        order, ground.renderer, objective, learning, _measuring(stage, ground, learning, order),
        micro_batch_tokens=ground.policy.budget.packed, seed=stage.train.seed, parallel=ground.parallel,
        folder=ground.folder("measured"), log=ground.log,
    )  # fmt: skip
    learner = PolicyLearner(
        learning, temperature=stage.rollout.temperature, entropy_gradient=objective.entropy_weight > 0
    )
    return OnlineWork(learner=learner, feed=feed, order=order)


def _warn_of_dropout(model: torch.nn.Module) -> None:
    """A round's log-probs are measured without it: with it no ratio is 1 before anything has been learnt."""
    with_dropout = (name for name, one in model.named_modules() if isinstance(one, torch.nn.Dropout) and one.p > 0)
    if (name := next(with_dropout, None)) is not None:
        warnings.warn(
            f"dropout ({name}) moves the ratios that clipping goes by, where a round has several steps: leave it at 0 "
            "(model.lora.dropout, or the checkpoint's config.json), or take one step a round (objective.minibatches, "
            "and num_iterations or epochs)",
            stacklevel=2,
        )


def _pairs(stage: OnlineDpoStage, ground: OnlineGround) -> OnlineWork:
    objective, order = pairwise_objective(stage.objective), _order(stage, ground, 1)
    reference = measured(_reference(stage, ground)) if objective.needs_reference else None
    feed = OnlinePairFeed(
        order, ground.renderer, stage.pairs, micro_batch_tokens=ground.policy.budget.packed,
        parallel=ground.parallel, log=ground.log,
    )  # fmt: skip
    return OnlineWork(learner=PairLearner(objective, reference), feed=feed, order=order)


def _order(
    stage: OnlineStage, ground: OnlineGround, steps_per_round: int, *, replace_equal: bool = False
) -> RoundOrder:
    rounds = Rounds(
        engine=ground.engine, renderer=ground.renderer, reward=ground.reward, rollout=stage.rollout,
        prompts=ground.prompts, folder=ground.folder("rounds"),
        replace_equal=replace_equal, ranks=ground.context.ranks,
    )  # fmt: skip
    return RoundOrder(
        rounds, ground.engine.sync, num_prompts=len(ground.prompts), batch_size=stage.train.batch_size,
        epochs=stage.train.epochs, max_steps=stage.train.max_steps, steps_per_round=steps_per_round,
        seed=stage.train.seed, staleness=stage.rollout.staleness,
    )  # fmt: skip


def _measuring(
    stage: OnlinePolicyStage, ground: OnlineGround, learning: PolicyLearning, order: RoundOrder
) -> Measuring:
    """What is measured of a round before it is trained on, and how."""
    policy, rollout = ground.policy, stage.rollout
    several, stale = order.steps_per_round > 1, rollout.staleness > 0
    wanted = several or stale or learning.reward_penalty is not None
    return Measuring(
        policy=policy_logprobs(policy.tokens, rollout.temperature) if wanted else None,
        reference=_reference(stage, ground) if stage.objective.needs_reference else None,
        values=policy_values(policy.scorer) if isinstance(policy.scorer, PolicyScorer) else None,
        whole=rollout.whole,
        stale=stale,
        several_steps=several,
        micro_batch_tokens=policy.budget.packed,
        seed=stage.train.seed,
        parallel=ground.parallel,
        folder=ground.folder("measured"),
        reader=ground.renderer.reader,
    )


def _reference(stage: OnlineStage, ground: OnlineGround) -> Scores:
    """At the rollouts' temperature: the distributions that are compared are those that are sampled from."""
    temperature = 1.0 if isinstance(stage, OnlineDpoStage) else stage.rollout.temperature
    return reference_scores(
        stage, ground.context, ground.policy.tokens, ground.parallel.device, temperature=temperature
    )
