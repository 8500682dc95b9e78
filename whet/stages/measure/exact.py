"""Accuracy: the share of answers a checker calls right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from whet.config.evaluate import ExactTask
from whet.config.rollout import Checker
from whet.errors import DataError
from whet.rewards.check import Check, build_checker
from whet.schema.artifacts import Measure
from whet.stages.measure.answers import Measured, answer_all, sample_rows
from whet.stages.measure.interval import proportion
from whet.stages.measure.ready import ReadyTask
from whet.stages.measure.store import ReplyStore
from whet.stages.measure.subject import Subject


def measure_exact(ready: ReadyTask, task: ExactTask, subject: Subject, store: ReplyStore, num_logged: int) -> Measured:
    """`accuracy` over all prompts and, with `task.by`, `accuracy/GROUP` over each group. No answer, no point."""
    check = checker_of(task.checker, ready)
    if task.by is not None:
        _check_column(ready, task.by)
    answers = answer_all(ready, task, subject, store)
    scores = [
        [0.0 if reply.error else check(prompt, reply.text) for reply in replies]
        for prompt, replies in zip(ready.prompts, answers, strict=True)
    ]
    shares = [sum(values) / len(values) for values in scores]
    groups = {"accuracy": shares}
    if task.by is not None:
        groups |= {f"accuracy/{name}": values for name, values in _by_group(ready, task.by, shares).items()}
    measures = [_accuracy(ready.name, subject.label, metric, values, task) for metric, values in groups.items()]
    samples = sample_rows(ready, subject.label, answers, [values[0] for values in scores], num_logged)
    return Measured(measures=measures, samples=samples, ledger=ready.ledger)


def checker_of(config: Checker, ready: ReadyTask) -> Check:
    """The task's checker. Raises CheckError for a row that a rule cannot check, before any model answers it; of what a
    function of the user's needs nothing is known before it is called."""
    check = build_checker(config)
    if config.type != "custom":
        for prompt in ready.prompts:
            check(prompt, "")
    return check


def _check_column(ready: ReadyTask, column: str) -> None:
    """Raises DataError for a row that is of no group, before any model answers it."""
    for prompt in ready.prompts:
        if column not in prompt.columns:
            raise DataError(
                f"no column {column!r}",
                file=prompt.origin.file,
                line=prompt.origin.line,
                fix=f"tasks.{ready.name}.by names a column every row must have",
            )


def _by_group(ready: ReadyTask, column: str, shares: Sequence[float]) -> Mapping[str, list[float]]:
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for prompt, share in zip(ready.prompts, shares, strict=True):
        groups[str(prompt.columns[column])].append(share)
    return dict(sorted(groups.items()))


def _accuracy(task_name: str, label: str, metric: str, shares: Sequence[float], task: ExactTask) -> Measure:
    value, low, high = proportion(shares, task.num_samples)
    return Measure(stage=label, task=task_name, metric=metric, value=value, low=low, high=high, num=len(shares))
