"""Perplexity: exp of the mean negative log-likelihood of the trained tokens of held-out records."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from copy import deepcopy

import torch

from whet.config.evaluate import PerplexityTask
from whet.data.batch import collate_tokens
from whet.data.ledger import Ledger
from whet.data.render import Rendered, fit, render_records
from whet.errors import DataError, ModelError
from whet.models.scoring import TokenScorer
from whet.runs.sinks import Progress
from whet.schema.artifacts import Measure
from whet.schema.records import Conversation
from whet.stages.measure.answers import Measured
from whet.stages.measure.interval import ratio
from whet.stages.measure.ready import ReadyTask
from whet.stages.measure.subject import Subject


def measure_perplexity(ready: ReadyTask, task: PerplexityTask, subject: Subject) -> Measured:
    """`perplexity`, weighted by token; the interval is of the mean over records, carried through exp."""
    ledger = deepcopy(ready.ledger)
    rows = [
        (index, row)
        for index, record in enumerate(ready.conversations)
        for row in _fitted(record, task, subject, ledger)
    ]
    records: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    with Progress(f"{subject.label} · {ready.name}", len(rows)) as progress:
        for index, total, weight in _row_nll(rows, task.batch_size, subject, progress):
            records[index][0] += total
            records[index][1] += weight
    if len(records) < 2:
        found = ledger.describe()
        raise DataError("fewer than 2 records with tokens to score", field=f"tasks.{ready.name}", found=found)
    totals, weights = zip(*records.values(), strict=True)
    value, low, high = (_exp(x, subject.label, ready.name) for x in ratio(totals, weights))
    measure = Measure(
        stage=subject.label, task=ready.name, metric="perplexity", value=value, low=low, high=high, num=len(records)
    )
    return Measured(measures=[measure], ledger=ledger)


def _exp(nll: float, label: str, task: str) -> float:
    """Raises ModelError where the result is larger than any number."""
    try:
        return math.exp(nll)
    except OverflowError:
        raise ModelError(
            f"{label} has no perplexity: it finds the records all but impossible", field=f"tasks.{task}",
            found=f"{nll:.4g} nats a token", fix="its training may have diverged: measure an earlier checkpoint",
        ) from None  # fmt: skip


def _fitted(record: Conversation, task: PerplexityTask, subject: Subject, ledger: Ledger) -> list[Rendered]:
    """The rows of one record at no more than `data.max_length` tokens."""
    data, rows = task.data, _rendered(record, task, subject, ledger)
    return fit(rows, data.max_length, data.on_overlong, ledger, place_id=subject.renderer.place_id)


def _rendered(record: Conversation, task: PerplexityTask, subject: Subject, ledger: Ledger) -> Iterator[Rendered]:
    """The rows of one record, where the template takes it; else `data.on_bad_row` says what happens."""
    for row in render_records(subject.renderer, [record], task.data.on_bad_row, ledger):
        assert isinstance(row, Rendered), "a conversation is rendered to rows of tokens"
        yield row


def _row_nll(
    rows: Sequence[tuple[int, Rendered]], batch_size: int, subject: Subject, progress: Progress
) -> Iterator[tuple[int, float, float]]:
    """Index of the record, weighted negative log-likelihood and weight of each row that has tokens to score.

    The longest go first, so that a batch too large for the memory fails at once.
    """
    scorer, device = TokenScorer(subject.model), next(subject.model.parameters()).device
    order = sorted(rows, key=lambda pair: len(pair[1].ids), reverse=True)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        batch = collate_tokens([row for _, row in part], device=device, reader=subject.renderer.reader)
        logprobs = scorer(batch.packed).logprobs
        counts = batch.packed.target_rows.bincount(minlength=len(part)).tolist()
        totals, weights = torch.split(-logprobs * batch.weights, counts), torch.split(batch.weights, counts)
        for (index, _), total, weight in zip(part, totals, weights, strict=True):
            if len(total):
                yield index, float(total.double().sum()), float(weight.double().sum())
        progress.update(len(part))
