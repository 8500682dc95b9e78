"""How a judge judged, in numbers: what could not be read, where it disagreed with itself, which place it favoured.

Everything is counted over the judgements of all groups; what was not there to be counted is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import assert_never

from whet.config.judge import Judge, Listwise, Pairwise, Pointwise, RewardJudge
from whet.rewards.pairwise import Comparison, compared
from whet.schema.rollouts import Group, Judgement


def judge_metrics(groups: Sequence[Group], judge: Judge) -> dict[str, float]:
    """What the judge's replies say about it.

    - `num_judgements`; `parse_failure_rate` of them could not be read, `judge_error_rate` never came
    - `vote_disagreement`: share of what was judged several times, and read at least twice, on which the votes differ
    - pairwise: `swap_inconsistency_rate` over comparisons read in both orders, `comparison_tie_rate` of them a tie in
      both, and `first_place_share`, the share of decided verdicts for the answer shown first (a half: no favourite)
    - with expected scores `score_mass`: mean probability that lay on the scale
    """
    judgements = [one for group in groups for one in group.judgements]
    masses = [one.mass for one in judgements if one.mass is not None]
    values = {
        "num_judgements": float(len(judgements)) if judgements else math.nan,
        "parse_failure_rate": _share([one.reading is None for one in judgements]),
        "judge_error_rate": _share([one.error is not None for one in judgements]),
        "vote_disagreement": _share(
            differ
            for group in groups
            for differ in _disagreements(group.judgements, ordered=isinstance(judge, Pairwise))
        ),
        "score_mass": sum(masses) / len(masses) if masses else math.nan,
    }
    if isinstance(judge, Pairwise):
        values |= _comparison_metrics(groups)
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _comparison_metrics(groups: Sequence[Group]) -> dict[str, float]:
    comparisons: list[Comparison] = [
        one for group in groups for one in compared(group.judgements).values() if one.readable
    ]
    verdicts = [one.reading for group in groups for one in group.judgements]
    return {
        "num_comparisons": float(sum(len(compared(group.judgements)) for group in groups)),
        "swap_inconsistency_rate": _share([not one.consistent for one in comparisons]),
        "comparison_tie_rate": _share([one.consistent and one.shown_first == "tie" for one in comparisons]),
        "first_place_share": _share([reading == (1.0, 0.0) for reading in verdicts if reading and 1.0 in reading]),
    }


def _disagreements(judgements: Sequence[Judgement], *, ordered: bool) -> list[bool]:
    """Whether votes differ, for everything read at least twice. `ordered`: another order is another question.

    Expected scores differ always: they are compared as whole ones.
    """
    readings: dict[tuple[int, ...], list[dict[int, float]]] = {}
    for one in judgements:
        if one.reading is not None:
            about = one.shown if ordered else tuple(sorted(one.shown))
            reading = one.reading if one.mass is None else tuple(float(round(score)) for score in one.reading)
            readings.setdefault(about, []).append(dict(zip(one.shown, reading, strict=True)))
    return [any(vote != votes[0] for vote in votes) for votes in readings.values() if len(votes) > 1]


def score_range(groups: Sequence[Group], judge: Judge) -> tuple[float, float]:
    """The scale the scores lie on; that of a reward model is what it gave."""
    match judge:
        case Pointwise(low=low, high=high):
            return low, high
        case Pairwise() | Listwise():
            return 0.0, 1.0
        case RewardJudge():
            values = [score.value for group in groups for score in group.scores if score.value is not None]
            return (min(values), max(values)) if values else (0.0, 1.0)
        case _:
            assert_never(judge)


def _share(flags: Iterable[bool]) -> float:
    known = list(flags)
    return sum(known) / len(known) if known else math.nan
