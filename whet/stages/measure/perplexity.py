"""Perplexity: exp of the mean negative log-likelihood of the trained tokens of held-out records."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy

import torch

from whet.config.evaluate import PerplexityTask
from whet.data.batch import collate_tokens
from whet.data.render import Rendered, fit
from whet.errors import DataError
from whet.models.scoring import token_logprobs
from whet.runs.sinks import Progress
from whet.schema.artifacts import Measure
from whet.stages.measure.answers import Measured
from whet.stages.measure.interval import ratio
from whet.stages.measure.ready import ReadyTask
from whet.stages.measure.subject import Subject


def measure_perplexity(ready: ReadyTask, task: PerplexityTask, subject: Subject) -> Measured:
    """`perplexity`, weighted by token; the interval is of the mean over records, carried through exp."""
    ledger = deepcopy(ready.ledger)
    rendered = map(subject.renderer.conversation, ready.conversations)
    rows = fit(rendered, task.data.max_length, task.data.on_overlong, ledger)
    with Progress(f"{subject.label} · {ready.name}", len(rows)) as progress:
        sums = list(_row_nll(rows, task.batch_size, subject, progress))
    if len(sums) < 2:
        raise DataError(
            "fewer than 2 records with tokens to score", field=f"tasks.{ready.name}", found=ledger.describe()
        )
    value, low, high = (math.exp(x) for x in ratio([total for total, _ in sums], [weight for _, weight in sums]))
    measure = Measure(
        stage=subject.label, task=ready.name, metric="perplexity", value=value, low=low, high=high, num=len(sums)
    )
    return Measured(measures=[measure], ledger=ledger)


def _row_nll(
    rows: Sequence[Rendered], batch_size: int, subject: Subject, progress: Progress
) -> Iterator[tuple[float, float]]:
    """Weighted negative log-likelihood and weight of each row that has tokens to score, longest rows first.

    The longest go first so that a batch too large for the memory fails at once, and little is padded.
    """
    pad_id, device = int(subject.tokenizer.pad_token_id), next(subject.model.parameters()).device
    order = sorted(rows, key=lambda row: len(row.ids), reverse=True)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        batch = collate_tokens(part, pad_id=pad_id, device=device)
        logprobs = token_logprobs(subject.model, batch.input_ids, batch.attention_mask, batch.target_mask)
        counts = batch.target_mask.sum(dim=1).tolist()
        totals, weights = (-logprobs * batch.weights).split(counts), batch.weights.split(counts)
        for total, weight in zip(totals, weights, strict=True):
            if len(total):
                yield float(total.double().sum()), float(torch.sum(weight.double()))
        progress.update(len(part))
