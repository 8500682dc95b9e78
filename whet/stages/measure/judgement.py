"""Judging as a skill: how well a model's scores tell answers called good from answers called bad.

The answers and their labels are stored, so every model judges the same ones: where a model judges its own answers, as
`prepare` does, a model that answers better has a harder time telling them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from whet.config.evaluate import JudgementTask
from whet.errors import DataError
from whet.rewards.judge import build_judge
from whet.schema.artifacts import Measure
from whet.schema.records import Prompt, Rating
from whet.schema.rollouts import Completion, Group
from whet.stages.measure.answers import ROUND, Measured
from whet.stages.measure.interval import Interval, area, proportion
from whet.stages.measure.ready import ReadyTask
from whet.stages.measure.store import Reply, ReplyStore
from whet.stages.measure.subject import Subject


def measure_judgement(ready: ReadyTask, task: JudgementTask, subject: Subject, store: ReplyStore) -> Measured:
    """`agreement`: the chance that a good answer scores above a bad one, ties half (AUC), over the answers that got a
    score; `unscored`: the share that got none. Raises DataError where all scored answers have one label."""
    judge = build_judge(task.judge, subject.renderer.speaking(None), seed=task.seed)
    groups = [_group(key, rating) for key, rating in zip(ready.keys, ready.ratings, strict=True)]
    asked = [judge.questions(group) for group in groups]
    engine, size = partial(subject.engine, task.batch_size), ROUND * task.batch_size
    flat = [question.request for questions in asked for question in questions]
    spoken = iter(store.answer(subject.label, ready.name, flat, engine, round_size=size))
    judged = [
        judge.judged(group, questions, [_spoken(next(spoken)) for _ in questions])
        for group, questions in zip(groups, asked, strict=True)
    ]
    scores = [group.scores[0].value for group in judged]
    measures = [
        _measure(subject.label, ready.name, "agreement", agreement(scores, ready), _num(scores)),
        _measure(subject.label, ready.name, "unscored", proportion([float(s is None) for s in scores]), len(scores)),
    ]
    return Measured(measures=measures, ledger=ready.ledger)


def agreement(scores: Sequence[float | None], ready: ReadyTask) -> Interval:
    """Area under the ROC curve and its interval."""
    scored = [(score, rating.label) for score, rating in zip(scores, ready.ratings, strict=True) if score is not None]
    good = np.array([score for score, label in scored if label])
    bad = np.array([score for score, label in scored if not label])
    if len(good) < 2 or len(bad) < 2:
        raise DataError(
            "agreement needs two good and two bad answers with a score", field=f"tasks.{ready.name}.data.files",
            found=f"{len(good)} good, {len(bad)} bad",
        )  # fmt: skip
    won = (good[:, None] > bad[None, :]) + 0.5 * (good[:, None] == bad[None, :])
    return area(float(won.mean()), len(good), len(bad))


def _num(scores: Sequence[float | None]) -> int:
    return sum(score is not None for score in scores)


def _measure(label: str, task: str, metric: str, interval: Interval, num: int) -> Measure:
    value, low, high = interval
    return Measure(stage=label, task=task, metric=metric, value=value, low=low, high=high, num=num)


def _group(key: str, rating: Rating) -> Group:
    """A stored answer as if it had just been given."""
    text = "\n\n".join(message.text for message in rating.response)
    answer = Completion(key=key, ids=(), text=text, logprobs=(), finish_reason="stop")
    return Group(prompt=Prompt(messages=rating.prompt, origin=rating.origin), completions=(answer,), scores=())


def _spoken(reply: Reply) -> Completion:
    return Completion(
        key=reply.key, ids=(), text=reply.text, logprobs=(), finish_reason=reply.finish_reason, error=reply.error
    )
