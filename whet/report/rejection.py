"""What a reject stage left: how many answers were right, what became of them, and groups to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from whet.report.figures import Bar, Chart, Intervals, Lines, Panel, Series
from whet.report.pictures import thumbnails
from whet.report.words import cut
from whet.runs.files import read_json, read_jsonl
from whet.runs.reader import Row, StageView

MAX_GROUPS = 8
"""Groups shown; all that were kept are in reject_samples.jsonl."""
MAX_FILES = 20
"""Files with a bar of their own."""
FACTS = (
    ("num_prompts", "prompts", "{:,.0f}"),
    ("num_answers", "answers", "{:,.0f}"),
    ("accept_rate", "answers right", "{:.1%}"),
    ("num_solved", "prompts with a right answer", "{:,.0f}"),
    ("num_unsolved", "prompts without one", "{:,.0f}"),
    ("num_accepted", "rows in accepted.jsonl", "{:,.0f}"),
    ("num_rejected", "rows in rejected.jsonl", "{:,.0f}"),
    ("num_pairs", "rows in preference.jsonl", "{:,.0f}"),
    ("mean_length_right", "tokens of a right answer", "{:.1f}"),
    ("mean_length_wrong", "tokens of a wrong answer", "{:.1f}"),
)
"""Metric, its words, its form."""
FATES = {
    "accepted": "right and kept",
    "over_limit": "right, but the prompt had enough",
    "duplicate": "right, same text as another",
    "cut": "right, but cut at the limit",
    "rejected": "wrong",
    "rejected_duplicate": "wrong, same text as another",
    "empty": "empty",
    "unscored": "without a score",
    "failed": "not answered",
}
MARKS = {
    "accepted": ("right", "✓ kept"),
    "over_limit": ("right", "✓ enough"),
    "duplicate": ("right", "✓ twice"),
    "cut": ("right", "✓ cut"),
    "rejected": ("wrong", "✗ wrong"),
    "rejected_duplicate": ("wrong", "✗ twice"),
    "empty": ("", "empty"),
    "unscored": ("", "no score"),
    "failed": ("", "failed"),
}
"""Fate -> how an answer is marked: the colour of right or wrong, and a short word."""
MANY_MISSING = 0.05
"""Share of answers without a score from which on a person should look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An answer as the page shows it."""

    text: str
    score: str
    role: str
    """`right`, `wrong` or empty."""
    mark: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownGroup:
    """A prompt with its answers, right ones first."""

    prompt: str
    reference: str | None
    answers: tuple[Shown, ...]
    pictures: tuple[str, ...] = ()
    """Thumbnails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Everything the page shows of a reject stage."""

    facts: tuple[tuple[str, str], ...]
    outcomes: tuple[tuple[str, int, float], ...]
    """Words, count, percent of all answers."""
    reasons: tuple[tuple[str, int], ...]
    """Why answers have no score."""
    groups: tuple[ShownGroup, ...]
    charts: tuple[Chart, ...]
    alarms: tuple[str, ...]


def read_rejection(stage: StageView) -> Rejection | None:
    """None for a stage that rejects nothing, or has not come that far."""
    path = stage.paths.file("reject.json")
    if not path.exists():
        return None
    found = read_json(path)
    groups = read_jsonl(stage.paths.file("reject_samples.jsonl"))
    return Rejection(
        facts=tuple((words, form.format(stage.metrics[name])) for name, words, form in FACTS if name in stage.metrics),
        outcomes=tuple(_outcomes(found["fates"])),
        reasons=tuple(found["reasons"].items()),
        groups=tuple(_group(row) for row in groups[:MAX_GROUPS]),
        charts=tuple(_charts(found)),
        alarms=tuple(_alarms(found)),
    )


def _outcomes(fates: Mapping[str, int]) -> Iterator[tuple[str, int, float]]:
    total = sum(fates.values())
    for fate, words in FATES.items():
        if fates.get(fate):
            yield words, fates[fate], 100 * fates[fate] / total


def _alarms(found: Row) -> Iterator[str]:
    fates, prompts = found["fates"], found["prompts"]
    total, missing = sum(fates.values()), fates["unscored"] + fates["failed"]
    if total and missing > MANY_MISSING * total:
        yield f"{missing:,} of {total:,} answers have no score; the reasons stand below."
    if fates["cut"] > fates["accepted"] + fates["over_limit"]:
        yield "More right answers were cut at the limit than were kept: raise rollout.max_new_tokens."
    if prompts["unsolved"] and not prompts["solved"]:
        yield "No prompt was solved: the judge may ask for a form that the model does not know."


def _charts(found: Row) -> Iterator[Chart]:
    rates = [one for one in found["pass_at_k"] if one["value"] is not None]
    if rates:
        yield Chart(
            name="pass_at_k",
            title="pass@k",
            about=(
                "Chance that at least one of k answers to a prompt is right, without bias (2107.03374), with its 95 % "
                "interval over prompts. pass@1 is the accept rate. Healthy: a rise with k, which is what sampling "
                "more can still find. Red flag: a flat line, where more answers only say the same."
            ),
            figure=Intervals(groups=(("all prompts", _bars(rates, "k", "pass@{}")),), xlabel="share of prompts"),
        )
    files = [one for one in found["files"] if one["value"] is not None]
    if len(files) > 1:
        shown = sorted(files, key=lambda one: -int(one["prompts"]))[:MAX_FILES]
        yield Chart(
            name="accept_rate",
            title="Right answers by file",
            about=(
                "Share of right answers to a file's prompts, with its 95 % interval. A file near 0 gives nothing to "
                "learn from, one near 1 nothing to learn."
                + (f" The {MAX_FILES} largest of {len(files)} files." if len(files) > MAX_FILES else "")
            ),
            figure=Intervals(groups=(("file", _bars(shown, "file", "{}")),), xlabel="share of right answers"),
        )
    lengths = found["lengths"]
    if sum(lengths["right"]) and sum(lengths["wrong"]):
        yield _lengths(lengths)


def _bars(rows: list[Any], name: str, form: str) -> tuple[Bar, ...]:
    return tuple(
        Bar(label=_short(form.format(row[name])), value=row["value"], low=row["low"], high=row["high"]) for row in rows
    )


def _short(label: str) -> str:
    return label if len(label) <= 22 else "…" + label[-21:]


def _lengths(lengths: Row) -> Chart:
    edges = lengths["edges"]
    middle = [(low + high) / 2 for low, high in pairwise(edges)]

    def shares(counts: list[int]) -> list[float]:
        return [count / sum(counts) for count in counts]

    series = (
        Series("right", middle, shares(lengths["right"]), role="chosen", markers=True),
        Series("wrong", middle, shares(lengths["wrong"]), role="rejected", markers=True),
    )
    return Chart(
        name="lengths",
        title="Length of right and of wrong answers",
        about=(
            "Share of the answers by their number of tokens. Healthy: the lines lie on each other. Where they part, "
            "training on right answers moves the length as well; pairs of like length hold against it."
        ),
        figure=Lines(panels=(Panel(ylabel="share of answers", series=series, bounds=(0, None)),), xlabel="tokens"),
    )


def _group(row: Row) -> ShownGroup:
    order = list(FATES)
    answers = sorted(row["answers"], key=lambda one: order.index(one["fate"]))
    return ShownGroup(
        prompt=cut("\n\n".join(_words(message) for message in row["messages"])),
        reference=None if (reference := row.get("reference")) is None else cut(reference),
        answers=tuple(_answer(one) for one in answers),
        pictures=thumbnails(_pictures(row["messages"])),
    )


def _pictures(messages: Sequence[Row]) -> Iterator[str]:
    for message in messages:
        if not isinstance(message["content"], str):
            yield from (part["image"] for part in message["content"] if "image" in part)


def _words(message: Row) -> str:
    content = message["content"]
    if not isinstance(content, str):
        content = "".join(part.get("text", "[image]") for part in content)
    return content if message["role"] == "user" else f"{message['role']}: {content}"


def _answer(one: Row) -> Shown:
    return Shown(
        text=cut(one["text"]),
        score="no score" if one["score"] is None else f"{one['score']:.3g}",
        role=MARKS[one["fate"]][0],
        mark=MARKS[one["fate"]][1],
        error=cut(one.get("error", "")),
    )
