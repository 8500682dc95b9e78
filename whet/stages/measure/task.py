"""One task, one model: the dispatch, usable on a model that is already in memory.

measures, samples = measure_task(ready, model=model, tokenizer=tokenizer, renderer=renderer, label="sft")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import assert_never

import torch
from transformers import PreTrainedTokenizerBase

from whet.config.evaluate import (
    ExactTask,
    JudgementTask,
    OverlapTask,
    PerplexityTask,
    VerdictTask,
    WinRateTask,
)
from whet.data.render import Renderer
from whet.errors import ConfigError
from whet.rollout.build import Answering
from whet.runs.reader import SampleRow
from whet.schema.artifacts import Measure
from whet.stages.measure.answers import Measured
from whet.stages.measure.exact import measure_exact
from whet.stages.measure.judgement import measure_judgement
from whet.stages.measure.overlap import measure_overlap
from whet.stages.measure.perplexity import measure_perplexity
from whet.stages.measure.ready import ReadyTask
from whet.stages.measure.store import ReplyStore
from whet.stages.measure.subject import Present, RefLoader, Subject
from whet.stages.measure.verdict import measure_verdicts
from whet.stages.measure.win_rate import measure_win_rate


def measure_task(
    ready: ReadyTask,
    *,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    label: str,
    ref_loader: RefLoader | None = None,
) -> tuple[list[Measure], list[SampleRow]]:
    """Measure a model in memory on a task, under the task's own system message; nothing is stored. See `measure` for
    many models.

    The model's training state and random numbers stay as they were.
    """
    renderer = renderer.speaking(ready.task.data.system)
    answering = Answering.by(renderer, batch_size=1, exact=True)
    subject = Subject(label=label, voice=Present(model, answering), tokenizer=tokenizer, renderer=renderer)
    with evaluating(model):
        measured = measure(ready, subject, load=ref_loader)
    return measured.measures, measured.samples


def measure(
    ready: ReadyTask,
    subject: Subject,
    *,
    store: ReplyStore | None = None,
    num_logged: int = 0,
    load: RefLoader | None = None,
) -> Measured:
    """Measure one model on one task."""
    store = store or ReplyStore()
    match ready.task:
        case ExactTask() as task:
            return measure_exact(ready, task, subject, store, num_logged)
        case VerdictTask() as task:
            return measure_verdicts(ready, task, subject, store, num_logged)
        case OverlapTask() as task:
            return measure_overlap(ready, task, subject, store, num_logged)
        case JudgementTask() as task:
            return measure_judgement(ready, task, subject, store)
        case PerplexityTask() as task:
            return measure_perplexity(ready, task, subject)
        case WinRateTask() as task:
            if load is None:
                raise ConfigError("win_rate needs a second model", field="watch", fix="measure it in an evaluate stage")
            return measure_win_rate(ready, task, subject, store, num_logged, load)
        case _:
            assert_never(ready.task)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode without gradients, and back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
