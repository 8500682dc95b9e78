"""What a prepare stage left: how candidates were scored, how far the judge can be trusted, and groups to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from whet.report import alarms
from whet.report.evaluation import Verdict
from whet.report.figures import Chart, Histogram
from whet.report.words import cut
from whet.runs.files import read_json, read_jsonl
from whet.runs.reader import Row, StageView

MAX_GROUPS = 8
"""Groups shown; all that were kept are in self_reward_samples.jsonl."""

FACTS = (
    ("num_prompts", "prompts", "{:,.0f}"),
    ("num_candidates", "candidates", "{:,.0f}"),
    ("num_pairs", "pairs made", "{:,.0f}"),
    ("mean_score", "mean score", "{:.2f}"),
    ("accuracy", "candidates right, by the checker", "{:.1%}"),
    ("human_agreement", "judge agrees with people", "{:.3f}"),
    ("human_same_order", "answers in the people's order", "{:.1%}"),
    ("num_examples", "judge examples made", "{:,.0f}"),
    ("agreement", "judge agrees with the checker", "{:.3f}"),
    ("agreement_same_prompt", "same, within a prompt", "{:.3f}"),
    ("pair_accuracy", "pairs the right way round", "{:.1%}"),
    ("parse_failure_rate", "replies that could not be read", "{:.1%}"),
    ("judge_error_rate", "replies that never came", "{:.1%}"),
    ("vote_disagreement", "judged several times, votes differ", "{:.1%}"),
    ("score_mass", "probability on the scale", "{:.3f}"),
    ("num_comparisons", "comparisons", "{:,.0f}"),
    ("swap_inconsistency_rate", "verdicts that did not survive the swap", "{:.1%}"),
    ("comparison_tie_rate", "comparisons tied in both orders", "{:.1%}"),
    ("first_place_share", "verdicts for the answer shown first", "{:.1%}"),
    ("tie_rate", "prompts that ended in a tie", "{:.1%}"),
    ("cut_rate", "candidates cut at the limit", "{:.1%}"),
    ("mean_length", "tokens of a candidate", "{:.1f}"),
    ("chosen_length_ratio", "length, chosen over rejected", "{:.2f}"),
    ("num_judge_pairs", "pairs of judgements", "{:,.0f}"),
    ("meta_parse_failure_rate", "meta-judge's replies that could not be read", "{:.1%}"),
    ("meta_swap_inconsistency_rate", "meta-judge's verdicts that did not survive the swap", "{:.1%}"),
    ("meta_first_place_share", "meta-judge's verdicts for the first", "{:.1%}"),
    ("meta_score_shift", "score, preferred judgements over others", "{:+.2f}"),
)
"""Metric, its words, its form."""
REASONS = {
    "kept": "pair made",
    "ties": "best and worst had the same score",
    "below_margin": "scores too close",
    "identical": "best and worst were the same text",
    "one_candidate": "only one answer had a score",
    "no_score": "no judgement could be read",
    "failed": "the engine gave no answer",
    "empty": "every answer was empty",
    "all_right": "every answer was right",
    "all_wrong": "every answer was wrong",
    "unchecked": "the checker failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    text: str
    score: str
    role: str
    """`chosen`, `rejected` or empty."""
    judge: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What a judge said of several candidates at once."""

    title: str
    """Which of them it saw, in which order, and what it made of them."""
    judge: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """One prompt with its candidates, best first."""

    prompt: str
    candidates: tuple[Candidate, ...]
    dropped: str
    compared: tuple[Compared, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """Everything the page shows of a prepare stage."""

    facts: tuple[tuple[str, str], ...]
    outcomes: tuple[tuple[str, int, float], ...]
    """Words, count, percent of all prompts."""
    groups: tuple[ScoredGroup, ...]
    charts: tuple[Chart, ...]
    alarms: tuple[str, ...]


def read_judging(stage: StageView) -> Judging | None:
    """None for a stage that judged nothing, or has not come that far."""
    histograms = stage.paths.file("histograms.json")
    if not histograms.exists():
        return None
    pairs = stage.paths.file("pairs.json")
    checks = (
        alarms.weak_judge,
        alarms.parse_failures,
        alarms.judge_errors,
        alarms.swapped_verdicts,
        alarms.little_mass,
        alarms.many_ties,
        alarms.longer_chosen,
        alarms.many_cut,
    )
    rows = read_jsonl(stage.paths.file("self_reward_samples.jsonl"))
    return Judging(
        facts=tuple((words, form.format(stage.metrics[name])) for name, words, form in FACTS if name in stage.metrics),
        outcomes=tuple(_outcomes(read_json(pairs))) if pairs.exists() else (),
        groups=tuple(_group(row) for row in rows[:MAX_GROUPS]),
        charts=tuple(_charts(read_json(histograms))),
        alarms=tuple(sentence for check in checks if (sentence := check(stage.metrics))),
    )


def verdicts(stages: Sequence[StageView]) -> Iterator[Verdict]:
    """How far each judge can be trusted, in a sentence."""
    for stage in stages:
        human = stage.metrics.get("human_agreement")
        if human is not None:
            num = int(stage.metrics.get("human_agreement_num", 0))
            yield Verdict(
                trend="better" if human > 0.7 else "same" if human > 0.55 else "worse",
                text=(
                    f"{stage.name}: of two answers that people told apart the judge scores the better one higher with "
                    f"chance {human:.2f} ({num:,} pairs; 0.50 is a coin)."
                ),
            )
        agreement = stage.metrics.get("agreement")
        if stage.kind == "prepare" and agreement is not None:
            num = int(stage.metrics.get("agreement_num", 0))
            yield Verdict(
                trend="better" if agreement > 0.7 else "same" if agreement > 0.55 else "worse",
                text=(
                    f"{stage.name}: the judge scores a right answer above a wrong one with chance {agreement:.2f} "
                    f"({num:,} answers checked; 0.50 is a coin, 1.00 is the checker itself)."
                ),
            )


def _outcomes(pairs: Mapping[str, int]) -> Iterator[tuple[str, int, float]]:
    for reason, words in REASONS.items():
        if pairs.get(reason):
            yield words, pairs[reason], 100 * pairs[reason] / pairs["total"]


def _charts(histograms: Row) -> Iterator[Chart]:
    if sum(histograms["score"]["counts"]):
        yield Chart(
            name="scores",
            title="Scores",
            about=(
                "Of each candidate: the mean of its readable votes, or what comparisons or a reward model made of it. "
                "Healthy: spread over the scale. "
                "Red flag: one bar, since a judge that gives everyone the same mark makes no pairs."
            ),
            figure=Histogram(**histograms["score"], xlabel="score", ylabel="candidates"),
        )
    edges = [edge - 0.5 for edge in histograms["candidates"]["edges"]]
    yield Chart(
        name="candidates",
        title="Candidates for each prompt",
        about=(
            "How many answers to a prompt had words and a readable score. Healthy: all at the group size. "
            "Red flag: a bar at 0 or 1, where no pair can be made."
        ),
        figure=Histogram(
            edges=edges,
            counts=histograms["candidates"]["counts"],
            xlabel="usable candidates",
            ylabel="prompts",
            whole=True,
        ),
    )


def _group(row: Row) -> ScoredGroup:
    unscored = float("-inf")  # a reward model's scores may lie below zero
    places = sorted(
        range(len(row["candidates"])),
        key=lambda place: unscored if (score := row["candidates"][place]["score"]) is None else score,
        reverse=True,
    )
    roles = {"chosen": row["chosen"], "rejected": row["rejected"]}
    rank = {place: number for number, place in enumerate(places, start=1)}
    return ScoredGroup(
        prompt=cut(row["instruction"]),
        candidates=tuple(_candidate(row["candidates"][place], roles) for place in places),
        dropped=REASONS.get(row.get("dropped", ""), ""),
        compared=tuple(_compared(one, rank) for one in row.get("judgements", ())),
    )


def _compared(one: Row, rank: Mapping[int, int]) -> Compared:
    """Candidates by the place they have on the page."""
    shown = [rank[place] for place in one["shown"]]
    title = f"shown {', '.join(f'#{number}' for number in shown)}"
    if one["reading"] is None:
        said = "could not be read"
    elif len(shown) == 2 and sorted(one["reading"]) in ([0.0, 1.0], [0.5, 0.5]):
        said = "a tie" if 0.5 in one["reading"] else f"#{shown[one['reading'].index(1.0)]} is better"
    else:
        said = f"ranked {', '.join(f'{number:g}' for number in one['reading'])}"
    return Compared(title=f"{title}: {said}", judge=cut(one["reply"] or one.get("error", "")))


def _candidate(one: Row, roles: dict[str, str | None]) -> Candidate:
    """The first candidate with the chosen (rejected) text takes the role, and with it the role is given away."""
    role = next((name for name, text in roles.items() if text is not None and text == one["response"]), "")
    if role:
        roles[role] = None
    score = "no score" if one["score"] is None else f"{one['score']:.2g}"
    return Candidate(text=cut(one["response"]), score=score, role=role, judge=cut(one.get("judge_output", "")))
