"""Who judges in a stage: a model of the run, another checkpoint, a server or a reward model, and in which words."""

from __future__ import annotations

from whet.config.engine import Http, Vllm, served_by
from whet.config.judge import Asking, PointwiseForm, RewardJudge
from whet.config.judge import Judge as JudgeConfig
from whet.config.rewards import RewardModel
from whet.config.rollout import Rollout
from whet.data.render import Renderer
from whet.errors import ConfigError
from whet.rewards.build import RewardSetting, build_reward
from whet.rewards.judge import Judge, RewardAsJudge, build_judge
from whet.rollout.build import Answering, Served, engine_of_another, open_engine
from whet.rollout.engine import Engine
from whet.runs.given import ref_of
from whet.schema.artifacts import ModelRef
from whet.stages.context import Context
from whet.stages.rendering import renderer_of


def judge_of(config: JudgeConfig, context: Context, *, seed: int) -> Judge:
    """The judge that the plan names, without the model that speaks for it; a reward model is loaded at once.

    Raises ConfigError for a bad template, ModelError where the model is not there.
    """
    if not isinstance(config, RewardJudge):
        return build_judge(config, judge_renderer(config, context), seed=seed)
    model = RewardModel(
        path=config.path, adapter=config.adapter, batch_tokens=config.batch_tokens, device=context.model.device
    )
    setting = RewardSetting(models=context.models, vision=context.model.vision)
    return RewardAsJudge(reward=build_reward(model, setting=setting))


def judge_engine(judge: Asking, rollout: Rollout, context: Context, own: Engine | None = None) -> Engine:
    """The engine that judges: `own`, which answers with the stage's starting model, where that is the judge and no
    other engine is asked for; else one to be closed by the caller."""
    own_is_asked = own is not None and judge.model == "start" and judge.engine in (None, rollout.engine)
    config = rollout.engine if own_is_asked else judge.engine or engine_of_another(rollout.engine)
    adapted = isinstance(served_by(config), Vllm) and judge_ref(judge, context).adapter is not None
    if isinstance(judge, PointwiseForm) and judge.needs_probabilities and (adapted or isinstance(config, Http)):
        # vLLM 0.32 on a CPU ends where it is asked for the log-probs of several prompts under an adapter.
        raise ConfigError(
            "scores=expectation asks how likely given scores are", field="judge.engine",
            found="vllm with an adapter" if adapted else config.type,
            fix="set judge.engine=native" + (", or merge the adapter first" if adapted else ", or vllm"),
        )  # fmt: skip
    if own is not None and own_is_asked:
        return own
    renderer = judge_renderer(judge, context)
    return open_engine(
        config,
        Served(ref=judge_ref(judge, context), model=context.model, folder=context.paths.root),
        Answering.by(renderer, batch_size=rollout.batch_size),
    )


def judge_renderer(judge: Asking, context: Context) -> Renderer:
    """The judge is asked in its own words: a task's system message is part of what it judges, not of its role."""
    return renderer_of(judge_ref(judge, context), context.model)


def judge_ref(judge: Asking, context: Context) -> ModelRef:
    """`start` does not learn: a judge must not move with the judged."""
    return context.start if judge.model == "start" else ref_of(judge.model, context.models)
