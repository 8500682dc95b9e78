"""Measured values as a table, a chart and plain sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from whet.report.figures import Bar, Chart, Intervals
from whet.schema.artifacts import Measure

LOWER_IS_BETTER = ("perplexity",)
MAIN = ("accuracy", "perplexity", "rougeL", "bleu", "win_rate", "agreement")
"""Metrics that get a sentence and a place in the chart; the others stand in the table."""
DETAIL = ("win", "tie", "loss", "consistency", "first", "unreadable", "unscored")
"""Parts of a win rate, what a judge left without a score, and how often a verdict names the candidate shown first,
where half is right: shown on demand, without praise or blame."""
PERCENT = ("rouge1", "rouge2", "rougeL", "bleu")
"""Metrics on a scale of 0 to 100."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One model's value of one metric."""

    value: str
    interval: str
    delta: str
    """Difference to the model on its left, or empty."""
    trend: str
    """`better`, `worse` or `same` (intervals overlap) against the model on its left; empty for the first."""
    best: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One metric of one task, over all models."""

    task: str
    metric: str
    num: int
    main: bool
    group: str
    """Of a breakdown: which group; else empty."""
    detail: bool
    """Shown on demand: a group, or a part of a win rate."""
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All values: a column per model in the order of the pipeline."""

    models: tuple[str, ...]
    rows: tuple[TableRow, ...]
    breakdown: tuple[TableRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A sentence with its colour."""

    trend: str
    text: str


def table(measures: Sequence[Measure], order: Sequence[str]) -> Table:
    """`order` gives the models' places; what is measured but not in it comes last. A task's name stands for one thing:
    see `report.tasks`."""
    models = models_in_order(measures, order)
    keys = list(dict.fromkeys((one.task, one.metric) for one in measures))
    known = {(one.task, one.metric, one.stage): one for one in measures}
    rows = [_row([known.get((*key, model)) for model in models]) for key in keys]
    return Table(
        models=models,
        rows=tuple(row for row in rows if not row.detail),
        breakdown=tuple(row for row in rows if row.detail),
    )


def models_in_order(measures: Sequence[Measure], order: Sequence[str]) -> tuple[str, ...]:
    found = {one.stage for one in measures}
    return tuple(dict.fromkeys([*(name for name in order if name in found), *(one.stage for one in measures)]))


def verdicts(measures: Sequence[Measure], order: Sequence[str]) -> list[Verdict]:
    """What changed from model to model in every task's main metrics."""
    found = []
    for task in dict.fromkeys(one.task for one in measures):
        for metric in MAIN:
            known = {one.stage: one for one in measures if (one.task, one.metric) == (task, metric)}
            line = [known[model] for model in models_in_order(measures, order) if model in known]
            if metric == "win_rate":
                found += [_win(one, measures) for one in line]
                continue
            found += [_change(before, after) for before, after in pairwise(line)]
    return found


def intervals_chart(measures: Sequence[Measure], order: Sequence[str]) -> Chart | None:
    """Shares with their intervals; other scales would not share the axis."""
    shares = [one for one in measures if one.metric in ("accuracy", "win_rate", "agreement")]
    models = models_in_order(shares, order)
    groups = []
    for task, metric in dict.fromkeys((one.task, one.metric) for one in shares):
        known = {one.stage: one for one in shares if (one.task, one.metric) == (task, metric)}
        bars = [
            Bar(label=model, value=known[model].value, low=known[model].low, high=known[model].high)
            for model in models
            if model in known
        ]
        groups.append((f"{task} · {words(metric)}", tuple(bars)))
    if not groups:
        return None
    return Chart(
        name="evaluation",
        title="Values and their 95 % intervals",
        about="Two models differ for sure where their bars do not overlap; the last model of each group is in colour.",
        figure=Intervals(groups=tuple(groups), xlabel="share"),
    )


def number(metric: str, value: float) -> str:
    """
    >>> number("accuracy", 0.6125), number("rougeL", 34.21), number("perplexity", 1234.5)
    ('0.613', '34.2', '1,234')
    """
    name = metric.split("/")[0]
    if name in PERCENT:
        return f"{value:.1f}"
    if name == "perplexity":
        return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:.3f}"


def words(metric: str) -> str:
    return {"win_rate": "win rate", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "bleu": "BLEU"}.get(
        metric, metric
    )


def trend(before: Measure, after: Measure) -> str:
    """`better` or `worse` where the intervals do not overlap, else `same`."""
    lower = before.metric.split("/")[0] in LOWER_IS_BETTER
    if before.metric in DETAIL:
        return "same"
    if after.low > before.high:
        return "worse" if lower else "better"
    if after.high < before.low:
        return "better" if lower else "worse"
    return "same"


def _row(line: Sequence[Measure | None]) -> TableRow:
    present = [one for one in line if one is not None]
    metric, _, group = present[0].metric.partition("/")
    sign = -1 if metric in LOWER_IS_BETTER else 1
    values = sorted((sign * one.value for one in present), reverse=True)
    best = values[0] if len(values) > 1 and values[0] > values[1] and metric not in DETAIL else None
    left: Measure | None = None
    cells: list[Cell | None] = []
    for one in line:
        if one is None:
            cells.append(None)
            continue
        cells.append(_cell(one, left, best=sign * one.value == best))
        left = one
    return TableRow(
        task=present[0].task,
        metric=words(metric),
        num=max(one.num for one in present),
        main=metric in MAIN,
        group=group,
        detail=bool(group) or metric in DETAIL,
        cells=tuple(cells),
    )


def _cell(one: Measure, left: Measure | None, *, best: bool) -> Cell:
    delta = "" if left is None else number(one.metric, one.value - left.value)
    if left is not None and not delta.startswith("-"):
        delta = "+" + delta
    return Cell(
        value=number(one.metric, one.value),
        interval=_interval(one),
        delta=delta.replace("-", "\N{MINUS SIGN}"),
        trend="" if left is None else trend(left, one),
        best=best,
    )


def _change(before: Measure, after: Measure) -> Verdict:
    direction = "rose" if after.value > before.value else "fell" if after.value < before.value else "went"
    kind = trend(before, after)
    sure = "the intervals overlap, so this may be chance" if kind == "same" else "the intervals do not overlap"
    text = (
        f"{_subject(after)} {direction} from {_full(before)} for {before.stage} to {_full(after)} for {after.stage}; "
        f"{sure}."
    )
    return Verdict(trend=kind, text=text)


def _win(one: Measure, measures: Iterable[Measure]) -> Verdict:
    """A win rate stands on its own: one half is the line between winning and losing."""
    consistency = next(
        (m.value for m in measures if (m.stage, m.task, m.metric) == (one.stage, one.task, "consistency")), None
    )
    kind = "better" if one.low > 0.5 else "worse" if one.high < 0.5 else "same"
    meaning = {
        "better": "better than an even match",
        "worse": "worse than an even match",
        "same": "not told apart from an even match",
    }[kind]
    text = f"{one.task}: {one.stage} wins {_full(one)} of comparisons, {meaning}"
    if consistency is not None:
        text += f"; the judge kept its verdict in {consistency:.0%} of pairs when the order was swapped"
    return Verdict(trend=kind, text=text + ".")


def _subject(one: Measure) -> str:
    return one.task if one.task == one.metric else f"{one.task} {words(one.metric)}"


def _full(one: Measure) -> str:
    return f"{number(one.metric, one.value)} {_interval(one)}"


def _interval(one: Measure) -> str:
    return f"[{number(one.metric, one.low)}, {number(one.metric, one.high)}]"
