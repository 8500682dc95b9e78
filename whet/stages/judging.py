"""Who judges in a stage: a model of the run, another checkpoint or a server, and the words it is asked in."""

from __future__ import annotations

from whet.config.rollout import Judge, Rollout
from whet.data.render import Renderer
from whet.models.load import load_tokenizer
from whet.rollout.build import Answering, Served, engine_of_another, open_engine
from whet.rollout.engine import Engine
from whet.schema.artifacts import ModelRef
from whet.stages.context import Context
from whet.stages.inputs import ref_of


def judge_engine(judge: Judge, rollout: Rollout, context: Context, own: Engine | None = None) -> Engine:
    """The engine that judges: `own`, which answers with the stage's starting model, where that is the judge and no
    other engine is asked for; else one to be closed by the caller."""
    if own is not None and judge.model == "start" and judge.engine in (None, rollout.engine):
        return own
    renderer = judge_renderer(judge, context)
    return open_engine(
        judge.engine or engine_of_another(rollout.engine),
        Served(ref=judge_ref(judge, context), model=context.model, folder=context.paths.root),
        Answering(tokenizer=renderer.template.tokenizer, end_id=renderer.end_id, batch_size=rollout.batch_size),
    )


def judge_renderer(judge: Judge, context: Context) -> Renderer:
    """The judge is asked in its own words: a task's system message is part of what it judges, not of its role."""
    tokenizer = load_tokenizer(
        judge_ref(judge, context).path, chat_template=context.model.chat_template,
        trust_remote_code=context.model.trust_remote_code,
    )  # fmt: skip
    return Renderer(tokenizer)


def judge_ref(judge: Judge, context: Context) -> ModelRef:
    """`start` does not learn: a judge must not move with the judged."""
    return context.start if judge.model == "start" else ref_of(judge.model, context.models)
