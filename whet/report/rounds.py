"""Rounds side by side: what each round's model can do, how it judges, how long it answers, and what it was given.

A round is named after the model it leaves, M1, M2 ...; M0 is the model the first round started from, where it was
measured. What the judge of a round said of the round's own answers stands with the model that gave them: the one
before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whet.report.evaluation import Verdict, number, trend, words
from whet.report.figures import Chart, Lines, Panel, Role, Series
from whet.report.round import Round, read_round
from whet.runs.files import read_json
from whet.runs.reader import RunView, StageView
from whet.schema.artifacts import Measure

ROLES: tuple[Role, ...] = ("neutral", "second", "margin", "train", "chosen", "rejected", "eval")
"""Colours of rounds in one picture; the later ones come again where there are more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundCell:
    text: str
    small: str = ""
    trend: str = ""
    """`better`, `worse` or `same` against the round before; empty where that has no meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRow:
    """One model: a column of the table."""

    name: str
    model: str
    kept: bool
    cells: tuple[RoundCell | None, ...]
    links: tuple[tuple[str, str], ...]
    """Names and anchors of the stages of this round on the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsSection:
    """Everything the page shows of one loop."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[RoundRow, ...]
    verdicts: tuple[Verdict, ...]
    charts: tuple[Chart, ...]


def read_rounds(run: RunView) -> list[RoundsSection]:
    """A section for each loop of which a round is done."""
    loops = (run.summary or {}).get("loops") or []
    planned = {loop["name"]: loop for loop in run.plan.get("loops") or []}
    return [_section(run, loop, planned[loop["name"]]) for loop in loops if loop["name"] in planned]


def _section(run: RunView, loop: Mapping[str, Any], plan: Mapping[str, Any]) -> RoundsSection:
    rounds = [read_round(run, one, plan) for one in loop["rounds"]]
    columns = list(_columns(rounds))
    rows = [
        RoundRow(
            name=f"M{one.number}", model=one.model, kept=one.model == loop["kept"],
            cells=tuple(_cell(column, rounds, index) for column in columns),
            links=tuple((stage.name, f"#stage-{stage.name}") for stage in one.stages.values() if _has_section(stage)),
        )
        for index, one in enumerate(rounds)
    ]  # fmt: skip
    return RoundsSection(
        name=loop["name"], columns=tuple(words for words, _ in columns), rows=tuple(rows),
        verdicts=tuple(_verdicts(loop, rounds)), charts=tuple(_charts(rounds, loop["metric"])),
    )  # fmt: skip


def _has_section(stage: StageView) -> bool:
    """Whether the page has a place for the stage."""
    return bool(stage.steps) or stage.paths.file("histograms.json").exists()


Column = tuple[str, tuple[str, str]]
"""Words of a column, and where its numbers are: (task, metric) of an evaluation, or (kind of stage, metric)."""

OWN = (
    ("judge on own answers (AUC)", ("judged", "agreement")),
    ("own answers right", ("judged", "accuracy")),
    ("pairs", ("prepare", "num_pairs")),
    ("prompts", ("prompts", "num_prompts")),
    ("different word pairs", ("prompts", "distinct_2")),
    ("prompts alike (ROUGE-L)", ("prompts", "self_rouge_l")),
)
FORMS = {"agreement": "{:.3f}", "accuracy": "{:.3f}", "distinct_2": "{:.3f}", "self_rouge_l": "{:.3f}"}
HIDDEN = ("win", "tie", "loss", "consistency", "unreadable", "rouge1", "rouge2")
"""Measured values that stand in the table of the evaluation only."""


def _columns(rounds: Sequence[Round]) -> Iterator[Column]:
    measured = dict.fromkeys(key for one in rounds for key in one.measures if key[1] not in HIDDEN)
    for task, metric in measured:
        yield (words(metric) if task == metric else f"{task} {words(metric)}"), (task, metric)
    if any(one.mean_length is not None for one in rounds):
        yield "tokens an answer", ("", "mean_length")
    for title, key in OWN:
        if any(_number(one, key) is not None for one in rounds):
            yield title, key


def _number(one: Round, key: tuple[str, str]) -> float | None:
    kind, metric = key
    stage = one.judged if kind == "judged" else one.stages.get(kind)
    return stage.metrics.get(metric) if stage is not None else None


def _cell(column: Column, rounds: Sequence[Round], index: int) -> RoundCell | None:
    one, (_, key) = rounds[index], column
    if key in one.measures:
        found, last = one.measures[key], rounds[index - 1] if index else None
        before = last.measures[key] if last and key in last.measures and one.like(last, key) else None
        against = trend(before, found) if before is not None and found.metric != "win_rate" else ""
        if found.metric == "win_rate":
            against = "better" if found.low > 0.5 else "worse" if found.high < 0.5 else "same"
        low, high = (number(found.metric, value) for value in (found.low, found.high))
        return RoundCell(text=number(found.metric, found.value), small=f"[{low}, {high}]", trend=against)
    if key == ("", "mean_length"):
        return RoundCell(text=f"{one.mean_length:.1f}") if one.mean_length is not None else None
    value = _number(one, key)
    return None if value is None else RoundCell(text=FORMS.get(key[1], "{:,.0f}").format(value))


def _verdicts(loop: Mapping[str, Any], rounds: Sequence[Round]) -> Iterator[Verdict]:
    """From the first to the last round in a sentence, and why the loop ended where it did."""
    if loop["metric"] is not None:
        task, _, metric = loop["metric"].partition("/")
        measured = [(one, one.measures[task, metric]) for one in rounds if (task, metric) in one.measures]
        if len(measured) > 1 and measured[0][0].like(measured[-1][0], (task, metric)):
            (first, before), (last, after) = measured[0], measured[-1]
            kind = trend(before, after)
            sure = "the intervals overlap" if kind == "same" else "the intervals do not overlap"
            yield Verdict(trend=kind, text=(
                f"{loop['metric']}: {_value(before)} for M{first.number} ({first.model}), {_value(after)} for "
                f"M{last.number} ({last.model}); {sure}."
            ))  # fmt: skip
    lengths = [one for one in rounds if one.mean_length]
    if len(lengths) > 1:
        growth = (lengths[-1].mean_length or 0.0) / (lengths[0].mean_length or 1.0)
        yield Verdict(trend="worse" if growth > 1.2 else "same", text=(
            f"Answers of M{lengths[-1].number} are {growth:.2f} times as long as those of M{lengths[0].number}."
        ))  # fmt: skip
    if loop["stopped"]:
        yield Verdict(trend="same", text=f"Stopped after {loop['done']} of {loop['of']} rounds: {loop['stopped']}.")
    yield Verdict(trend="same", text=f"Later stages go on from {loop['kept']}.")


def _value(one: Measure) -> str:
    low, high = number(one.metric, one.low), number(one.metric, one.high)
    return f"{number(one.metric, one.value)} [{low}, {high}]"


def _charts(rounds: Sequence[Round], metric: str | None) -> Iterator[Chart]:
    panels = [panel for panel in _panels(rounds, metric) if panel.series]
    if len(rounds) > 1 and panels:
        yield Chart(
            name="rounds",
            title="Round by round",
            about=(
                "What each round's model is worth, how well it tells good answers from bad ones, and how long its "
                "answers are. Healthy: the first rises and levels off, the second does not fall, the third stays "
                "where it was. Red flag: length grows while quality does not, or the judge falls behind."
            ),
            figure=Lines(panels=tuple(panels), xlabel="round"),
        )
    scores = [series for series in map(_scores, rounds) if series is not None]
    if scores:
        coloured = tuple(
            Series(label, x, y, ROLES[index % len(ROLES)], markers=True) for index, (label, x, y) in enumerate(scores)
        )
        yield Chart(
            name="scores",
            title="Scores by round",
            about=(
                "Share of the answers that got each score, judged by the model that gave them. Healthy: it moves to "
                "the right while there is still a left. Red flag: everything in the highest bin, where no pairs are "
                "left to make; or a jump to the right that the checker does not confirm."
            ),
            figure=Lines(panels=(Panel(ylabel="share of answers", series=coloured),), xlabel="score"),
        )


def _panels(rounds: Sequence[Round], metric: str | None) -> Iterator[Panel]:
    if metric is not None:
        task, _, name = metric.partition("/")
        known = [(one.number, one.measures[task, name]) for one in rounds if (task, name) in one.measures]
        x = [number for number, _ in known]
        yield Panel(ylabel=metric.replace("/", "\n"), series=(
            Series("value", x, [m.value for _, m in known], "train", markers=True),
            Series("95 % interval", x, [m.low for _, m in known], "neutral"),
            Series("", x, [m.high for _, m in known], "neutral"),
        ))  # fmt: skip
    agreements = [
        (one.number, m.value) for one in rounds for (_, name), m in one.measures.items() if name == "agreement"
    ]
    own = [(one.number, value) for one in rounds if (value := _number(one, ("judged", "agreement"))) is not None]
    lines = [("stored answers", agreements, "chosen"), ("own answers", own, "second")]
    yield Panel(ylabel="judge\nagreement", series=tuple(
        Series(label, [x for x, _ in points], [y for _, y in points], role, markers=True)  # type: ignore[arg-type]
        for label, points, role in lines if points
    ))  # fmt: skip
    lengths = [(one.number, one.mean_length) for one in rounds if one.mean_length is not None]
    if lengths:
        yield Panel(ylabel="tokens\nan answer", bounds=(0, None), series=(
            Series("length", [x for x, _ in lengths], [y for _, y in lengths], "margin", markers=True),
        ))  # fmt: skip


def _scores(one: Round) -> tuple[str, list[float], list[float]] | None:
    """Label, middle of each bin and share of the answers in it, as the round's model judged its own answers."""
    if one.judged is None:
        return None
    file = one.judged.paths.file("histograms.json")
    score = read_json(file)["score"] if file.exists() else {"counts": []}
    if not sum(score["counts"]):
        return None
    middles = [(low + high) / 2 for low, high in zip(score["edges"], score["edges"][1:], strict=False)]
    return f"M{one.number}", middles, [count / sum(score["counts"]) for count in score["counts"]]
