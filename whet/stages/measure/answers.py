"""Answers of a model to the prompts of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from whet.config.evaluate import ExactTask, OverlapTask, VerdictTask, WinRateTask
from whet.data.ledger import Ledger
from whet.data.places import pictures_in
from whet.errors import DataError
from whet.rewards.transcript import transcript
from whet.runs.reader import SampleRow
from whet.schema.artifacts import Measure
from whet.schema.records import Prompt
from whet.schema.rollouts import Sampling
from whet.stages.measure.ready import ReadyTask
from whet.stages.measure.store import Reply, ReplyStore
from whet.stages.measure.subject import Subject

ROUND = 4
"""Batches drawn between two looks at the store: more pad less, fewer lose less to a kill."""

GeneratedTask = ExactTask | VerdictTask | OverlapTask | WinRateTask


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a task says about one model."""

    measures: list[Measure]
    samples: list[SampleRow] = field(default_factory=list)
    ledger: Ledger
    """Rows read, kept and dropped on the way."""


def answer_all(ready: ReadyTask, task: GeneratedTask, subject: Subject, store: ReplyStore) -> list[list[Reply]]:
    """`num_samples` answers to each prompt. The reference stays here: only the prompt's messages are rendered."""
    sampling = Sampling(max_new_tokens=task.max_new_tokens, temperature=task.temperature, top_p=task.top_p)
    requests = [
        asked.request(f"{key}#{sample}", sampling, task.seed)
        for key, prompt in zip(ready.keys, ready.prompts, strict=True)
        for asked in [subject.renderer.ask(prompt.messages, prompt.tools, origin=prompt.origin)]
        for sample in range(task.num_samples)
    ]
    engine, size = partial(subject.engine, task.batch_size), ROUND * task.batch_size
    replies = store.answer(subject.label, ready.name, requests, engine, round_size=size)
    return [replies[start : start + task.num_samples] for start in range(0, len(replies), task.num_samples)]


def sample_rows(
    ready: ReadyTask, label: str, answers: Sequence[Sequence[Reply]], scores: Sequence[float | None], num_logged: int
) -> list[SampleRow]:
    """The first answer to each logged prompt; `scores` has one value per prompt, for that answer."""
    return [
        SampleRow(
            model=label,
            task=ready.name,
            key=ready.keys[index],
            prompt=transcript(ready.prompts[index].messages),
            completion=answers[index][0].text,
            reference=ready.prompts[index].reference,
            score=scores[index],
            images=tuple(pictures_in(ready.prompts[index].messages)),
        )
        for index in ready.logged(num_logged)
    ]


def references(ready: ReadyTask) -> list[str]:
    """The gold answers. Raises DataError at the first prompt that has none."""
    return [_reference(ready, prompt) for prompt in ready.prompts]


def _reference(ready: ReadyTask, prompt: Prompt) -> str:
    if prompt.reference is None:
        raise DataError(
            "no reference answer",
            file=prompt.origin.file,
            line=prompt.origin.line,
            fix=f"task {ready.name!r} compares answers with a reference: add one, or take the row out",
        )
    return prompt.reference
