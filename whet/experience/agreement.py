"""How far a judge's scores can be trusted, where a checker knows the truth.

An answer is right where the checker gives full marks. The checker measures; it never chooses a pair.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from whet.experience.pairs import Outcome
from whet.rewards.check import Check, CheckError
from whet.schema.rollouts import Group


@dataclass(slots=True)
class Checked:
    """The checker's word on every candidate: `right[group][candidate]`, None where the checker failed or the engine
    gave no answer."""

    right: list[list[bool | None]] = field(default_factory=list)
    failures: int = 0
    first_failure: str | None = None


def check_groups(groups: Sequence[Group], check: Check) -> Checked:
    """Check every answer. A check that fails is counted with its first complaint, and is neither right nor wrong; so is
    an answer that the engine never gave."""
    checked = Checked()
    for group in groups:
        marks: list[bool | None] = []
        for completion in group.completions:
            if completion.finish_reason == "error":
                marks.append(None)
                continue
            try:
                marks.append(check(group.prompt, completion.text) >= 1.0)
            except CheckError as error:
                marks.append(None)
                checked.failures += 1
                checked.first_failure = checked.first_failure or str(error)
        checked.right.append(marks)
    return checked


def agreement_metrics(groups: Sequence[Group], outcomes: Sequence[Outcome], checked: Checked) -> dict[str, float]:
    """Judge against checker; what has nothing to be measured on is left out.

    - `agreement`: chance that a right answer scores above a wrong one, ties half (AUC), over `agreement_num` answers
    - `agreement_same_prompt`: the same among answers to one prompt
    - `accuracy`: share of right candidates
    - `pair_accuracy`: of the `pair_accuracy_num` pairs with one right answer, the share in which it is the chosen one
    """
    marks = [mark for row in checked.right for mark in row if mark is not None]
    right, wrong = _scores(groups, checked)
    every = auc([s for scores in right for s in scores], [s for scores in wrong for s in scores])
    values = {
        "accuracy": _mean(marks),
        "agreement": every,
        "agreement_num": float(sum(map(len, right)) + sum(map(len, wrong))),
        "agreement_same_prompt": _within(right, wrong),
        "checker_failures": float(checked.failures),
    }
    differing = [
        row[pair.chosen.index]
        for row, outcome in zip(checked.right, outcomes, strict=True)
        if isinstance(outcome, tuple)
        for pair in outcome
        if {row[pair.chosen.index], row[pair.rejected.index]} == {True, False}
    ]
    values |= {"pair_accuracy": _mean(differing), "pair_accuracy_num": float(len(differing))}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def auc(right: Sequence[float], wrong: Sequence[float]) -> float:
    """Share of (right, wrong) combinations in which the right one scores higher, equals a half; nan without any."""
    if not right or not wrong:
        return math.nan
    lower, won = 0, 0.0
    rights, wrongs = Counter(right), Counter(wrong)
    for score in sorted({*rights, *wrongs}):
        won += rights[score] * (lower + 0.5 * wrongs[score])
        lower += wrongs[score]
    return won / (len(right) * len(wrong))


def _within(right: Sequence[Sequence[float]], wrong: Sequence[Sequence[float]]) -> float:
    """The same share over combinations that answer the same prompt."""
    num = sum(len(r) * len(w) for r, w in zip(right, wrong, strict=True))
    won = sum(auc(r, w) * len(r) * len(w) for r, w in zip(right, wrong, strict=True) if r and w)
    return won / num if num else math.nan


def _scores(groups: Sequence[Group], checked: Checked) -> tuple[list[list[float]], list[list[float]]]:
    """Scores of right and of wrong answers, by group."""
    right: list[list[float]] = []
    wrong: list[list[float]] = []
    for group, marks in zip(groups, checked.right, strict=True):
        scored = list(zip(marks, (score.value for score in group.scores), strict=True))
        right.append([value for mark, value in scored if mark is True and value is not None])
        wrong.append([value for mark, value in scored if mark is False and value is not None])
    return right, wrong


def _mean(values: Sequence[bool | None]) -> float:
    return sum(map(bool, values)) / len(values) if values else math.nan
