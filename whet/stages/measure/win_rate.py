"""Win rate against another model, by a judge that sees each pair in both orders.

Judges favour a place (Zheng et al., 2306.05685): a verdict counts only when it survives the swap, else it is a tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

from whet.config.evaluate import WinRateTask
from whet.rewards.check import Check
from whet.rewards.pairwise import Comparison, majority, swapped
from whet.rewards.parse import parse_verdict
from whet.rewards.template import SHIPPED, fill, read_template
from whet.rewards.transcript import about, transcript
from whet.schema.artifacts import Measure
from whet.schema.rollouts import Sampling
from whet.stages.measure.answers import ROUND, Measured, answer_all, sample_rows
from whet.stages.measure.exact import checker_of
from whet.stages.measure.interval import proportion
from whet.stages.measure.ready import ReadyTask
from whet.stages.measure.store import Reply, ReplyStore
from whet.stages.measure.subject import RefLoader, Subject


def measure_win_rate(
    ready: ReadyTask, task: WinRateTask, subject: Subject, store: ReplyStore, num_logged: int, load: RefLoader
) -> Measured:
    """`win_rate` (win + tie / 2), its parts `win`, `tie`, `loss`, and how far the judge can be trusted:
    `consistency` (both orders, same verdict) and `unreadable` (a verdict could not be parsed in some order). Where a
    checker decides there is no judge, and its numbers are left out.
    """
    check = None if task.checker is None else checker_of(task.checker, ready)
    ours = answer_all(ready, task, subject, store)
    subject.voice.close()  # two servers at a time may not fit the device
    against = load(task.against, None)
    with closing(against.voice):
        theirs = answer_all(ready, task, against, store)
    pairs = [(mine[0], other[0]) for mine, other in zip(ours, theirs, strict=True)]
    if check is not None:
        points = checked(ready, check, pairs)
        samples = sample_rows(ready, subject.label, ours, points, num_logged)
        return Measured(measures=_shares(subject.label, ready.name, points), samples=samples, ledger=ready.ledger)
    judge = subject if task.judge.model == "self" else load(task.judge.model, task.judge.engine)
    with closing(judge.voice):
        compared = compare(ready, task, pairs, judge, store, label=subject.label)
    points = [comparison.points for comparison in compared]
    columns = {
        "consistency": [float(comparison.consistent) for comparison in compared],
        "unreadable": [float(None in (comparison.shown_first, comparison.shown_second)) for comparison in compared],
    }
    measures = _shares(subject.label, ready.name, points)
    measures += [_measure(subject.label, ready.name, metric, values) for metric, values in columns.items()]
    samples = sample_rows(ready, subject.label, ours, points, num_logged)
    return Measured(measures=measures, samples=samples, ledger=ready.ledger)


def checked(ready: ReadyTask, check: Check, pairs: Sequence[tuple[Reply, Reply]]) -> list[float]:
    """1 where the checker gives the first of a pair more than the second, 0 where it gives less, else a half."""
    points = []
    for prompt, (mine, other) in zip(ready.prompts, pairs, strict=True):
        ours, theirs = (0.0 if reply.error else check(prompt, reply.text) for reply in (mine, other))
        points.append(0.5 if ours == theirs else float(ours > theirs))
    return points


def _shares(label: str, task_name: str, points: Sequence[float]) -> list[Measure]:
    """The win rate and what it is made of."""
    columns = {
        "win_rate": points,
        "win": [float(point == 1.0) for point in points],
        "tie": [float(point == 0.5) for point in points],
        "loss": [float(point == 0.0) for point in points],
    }
    return [_measure(label, task_name, metric, values) for metric, values in columns.items()]


def _measure(label: str, task_name: str, metric: str, values: Sequence[float]) -> Measure:
    value, low, high = proportion(values)
    return Measure(stage=label, task=task_name, metric=metric, value=value, low=low, high=high, num=len(values))


def compare(
    ready: ReadyTask,
    task: WinRateTask,
    pairs: Sequence[tuple[Reply, Reply]],
    judge: Subject,
    store: ReplyStore,
    *,
    label: str,
) -> list[Comparison]:
    """Ask the judge about every pair in both orders, `judge.votes` times each.

    The judge is asked in its own words: the system message of the task is part of what it judges, not of its role.
    """
    judge = replace(judge, renderer=judge.renderer.speaking(None))
    config, field = task.judge, f"tasks.{ready.name}.template"
    template = read_template(task.template, SHIPPED["pairwise"], field=field)
    sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p)
    requests = []
    for key, prompt, (mine, other) in zip(ready.keys, ready.prompts, pairs, strict=True):
        for order, (first, second) in (("ours first", (mine, other)), ("ours second", (other, mine))):
            values = {"instruction": transcript(prompt.messages), "first": first.text, "second": second.text}
            asked = judge.renderer.ask((about(prompt, fill(template, values)),), origin=prompt.origin)
            requests += [
                asked.request(f"{key}|{order}#{vote}", sampling, task.seed)
                for vote in range(config.votes)
            ]
    engine, size = partial(judge.engine, task.batch_size), ROUND * task.batch_size
    spoken = store.answer(judge.label, f"{ready.name}, judging {label}", requests, engine, round_size=size)
    verdicts = [
        majority([parse_verdict(vote.text, cut=vote.finish_reason == "length") for vote in votes])
        for votes in (spoken[start : start + config.votes] for start in range(0, len(spoken), config.votes))
    ]
    return [
        Comparison(shown_first, swapped(shown_second))
        for shown_first, shown_second in zip(verdicts[::2], verdicts[1::2], strict=True)
    ]
