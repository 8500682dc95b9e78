"""Scored groups -> preferences: the best candidate against the worst (Yuan et al., 2401.10020, section 2.2), or others.

    scores 4, 2, 5, 2
        best_worst     third over second                       (of equals the first drawn)
        all            third over second, third over fourth, first over second, first over fourth, third over first
        best_random    third over one of the others, drawn from the seed
    right, wrong, right, wrong by the checker
        right_wrong    third over second: the best right answer over the best wrong one

Every group ends in exactly one count: `kept`, or the reason why no pair came of it. Ties are dropped unless asked for,
because a pair of equals teaches the model whatever else happens to differ.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from statistics import mean
from typing import Literal, TypeAlias

from whet.config.rollout import OnlinePairs, Pairs
from whet.schema.rollouts import Completion, Group

Reason = Literal[
    "failed", "empty", "no_score", "one_candidate", "identical", "ties", "below_margin", "all_right", "all_wrong",
    "unchecked",
]  # fmt: skip
REASONS: dict[Reason, str] = {
    "failed": "the engine gave no answer",
    "empty": "every answer is empty",
    "no_score": "no judgement could be read",
    "one_candidate": "only one answer has a score",
    "identical": "best and worst are the same text",
    "ties": "best and worst have the same score",
    "below_margin": "best and worst differ by no more than pairs.min_margin",
    "all_right": "every answer is right",
    "all_wrong": "every answer is wrong",
    "unchecked": "the checker failed",
}
"""Why a group gives no pair, in words for the console and the error."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer that can stand in a pair: not empty, and scored."""

    index: int
    text: str
    score: float
    length: int = 0
    """Tokens, or characters where a server does not count tokens."""


@dataclass(frozen=True, slots=True)
class Pair:
    chosen: Candidate
    rejected: Candidate

    @property
    def margin(self) -> float:
        return self.chosen.score - self.rejected.score


Outcome: TypeAlias = tuple[Pair, ...] | Reason
"""The pairs of a group, at least one, or why there are none."""
Marks = Sequence[bool | None]
"""The checker's word on each completion of a group; None where it failed."""


@dataclass(slots=True)
class PairCounts:
    """What became of the groups: total = kept + dropped by reason."""

    total: int = 0
    kept: int = 0
    """Groups that gave a pair."""
    pairs: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.total += 1
        if isinstance(outcome, tuple):
            self.kept += 1
            self.pairs += len(outcome)
        else:
            self.dropped[outcome] += 1

    def to_json(self) -> dict[str, int]:
        by_reason = {reason: self.dropped[reason] for reason in REASONS}
        return {"total": self.total, "kept": self.kept} | by_reason | {"pairs": self.pairs}

    def describe(self) -> str:
        """One line for the console, the commonest reason first."""
        reasons = [f"{count}: {REASONS[reason]}" for reason, count in self.dropped.most_common()]  # type: ignore[index]
        pairs = f"{self.pairs} pairs of {self.kept} of {self.total} prompts"
        pairs = pairs if self.pairs != self.kept else f"{self.pairs} pairs of {self.total} prompts"
        return pairs + (f" ({'; '.join(reasons)})" if reasons else "")


def candidates(group: Group) -> list[Candidate]:
    """Those with words and a score."""
    return [
        _candidate(group, index, score.value)
        for index, score in enumerate(group.scores)
        if score.value is not None and has_words(group.completions[index])
    ]


def has_words(completion: Completion) -> bool:
    return bool(completion.text.strip())


def select_pair(group: Group, config: OnlinePairs, *, length_control: float = 0.0) -> Pair | Reason:
    """Best against worst, or why not; of those that score much the same the shortest and the longest (see below)."""
    usable = candidates(group)
    if problem := _too_few(group, usable):
        return problem
    best = max(usable, key=lambda candidate: candidate.score)
    others = [candidate for candidate in usable if candidate.text != best.text]
    if not others:
        return "identical"
    if best.score == min(candidate.score for candidate in usable):
        return Pair(best, others[0]) if config.keep_ties else "ties"
    chosen, rejected = _extremes(usable, length_control)
    if rejected.text == chosen.text:
        return "identical"
    pair = Pair(chosen, rejected)
    return pair if pair.margin > config.min_margin else "below_margin"


def select_pairs(
    groups: Iterable[Group], config: Pairs, *, seed: int = 0, marks: Sequence[Marks] | None = None
) -> tuple[list[Outcome], PairCounts]:
    """The outcome for each group, and their counts. `marks`: the checker's, by group, where it chooses.

    Raises ValueError for select=right_wrong without marks.
    """
    counts = PairCounts()
    outcomes: list[Outcome] = []
    for number, group in enumerate(groups):
        outcome = _select(group, config, seed, None if marks is None else marks[number])
        outcomes.append((outcome,) if isinstance(outcome, Pair) else outcome)
        counts.add(outcomes[-1])
    return outcomes, counts


def _select(group: Group, config: Pairs, seed: int, marks: Marks | None) -> Outcome | Pair:
    match config.select:
        case "best_worst":
            return select_pair(group, config, length_control=config.length_control)
        case "all":
            return _all(group, config)
        case "best_random":
            return _best_random(group, config, seed)
        case "right_wrong":
            if marks is None:
                raise ValueError("right against wrong needs the checker's marks")
            return _right_wrong(group, marks)


def _extremes(usable: Sequence[Candidate], rho: float) -> tuple[Candidate, Candidate]:
    """Meta-Rewarding's length control (Wu et al., 2407.19594, section 2.1).

        top tier      [(1 - rho) S_max + rho S_min, S_max]       chosen: its shortest
        bottom tier   [S_min, (1 - rho) S_min + rho S_max]       rejected: its longest

    With rho = 0 length does not count; below a half the tiers do not meet.
    """
    scores = [candidate.score for candidate in usable]
    highest, lowest = max(scores), min(scores)
    # Rounded, an edge may lie beyond the scores; the best and the worst are in their tiers all the same.
    top = [one for one in usable if one.score >= min(highest, (1 - rho) * highest + rho * lowest)]
    bottom = [one for one in usable if one.score <= max(lowest, (1 - rho) * lowest + rho * highest)]
    if not rho:
        return top[0], bottom[0]
    return min(top, key=_by_length), max(bottom, key=_by_length)


def _by_length(candidate: Candidate) -> int:
    return candidate.length


def _all(group: Group, config: Pairs) -> Outcome:
    """Every ordered pair of different texts with a wide enough margin, the widest first."""
    usable = candidates(group)
    if problem := _too_few(group, usable):
        return problem
    different = [Pair(a, b) for a, b in permutations(_merged(usable), 2)]
    if not different:
        return "identical"
    kept = [pair for pair in different if pair.margin > config.min_margin]
    if config.keep_ties:
        kept += [pair for pair in different if pair.margin == 0 and pair.chosen.index < pair.rejected.index]
    if kept:
        kept.sort(key=lambda pair: (-pair.margin, pair.chosen.index, pair.rejected.index))
        return tuple(kept[: config.max_per_prompt])
    return "ties" if all(pair.margin == 0 for pair in different) else "below_margin"


def _merged(usable: Sequence[Candidate]) -> list[Candidate]:
    """Each text once, the first of its candidates with the mean of their scores: a text that was scored twice must not
    stand on both sides, nor twice on one."""
    same: dict[str, list[Candidate]] = {}
    for candidate in usable:
        same.setdefault(candidate.text, []).append(candidate)
    return [replace(first, score=mean(one.score for one in (first, *more))) for first, *more in same.values()]


def _best_random(group: Group, config: Pairs, seed: int) -> Pair | Reason:
    """The best against one of those that are worse by enough, each as likely."""
    usable = candidates(group)
    if problem := _too_few(group, usable):
        return problem
    best = max(usable, key=lambda candidate: candidate.score)
    others = [Pair(best, candidate) for candidate in usable if candidate.text != best.text]
    if not others:
        return "identical"
    fit = [pair for pair in others if pair.margin > config.min_margin or (config.keep_ties and pair.margin == 0)]
    if not fit:
        return "ties" if all(pair.margin == 0 for pair in others) else "below_margin"
    return random.Random(f"pair {seed} {group.completions[0].key}").choice(fit)


def _right_wrong(group: Group, marks: Marks) -> Pair | Reason:
    """The best right answer over the best wrong one, by the judge's scores; without scores the first of each.

    The scores of the pair are the checker's, 1 and 0: the judge may have thought otherwise.
    """
    if not any(map(has_words, group.completions)):
        return _wordless(group)
    right, wrong = (_marked(group, marks, wanted) for wanted in (True, False))
    if right and wrong:
        return Pair(right[0], wrong[0])
    if not right and not wrong:
        return "unchecked"
    return "all_right" if right else "all_wrong"


def _marked(group: Group, marks: Marks, wanted: bool) -> list[Candidate]:
    """Answers with words that the checker calls right (wrong), the judge's favourite first."""
    places = [index for index, mark in enumerate(marks) if mark is wanted and has_words(group.completions[index])]
    values = [score.value for score in group.scores]
    places.sort(key=lambda index: -_or_lowest(values[index]))
    return [_candidate(group, index, float(wanted)) for index in places]


def _or_lowest(value: float | None) -> float:
    return float("-inf") if value is None else value


def _candidate(group: Group, index: int, score: float) -> Candidate:
    completion = group.completions[index]
    return Candidate(index, completion.text, score, completion.num_tokens or len(completion.text))


def _too_few(group: Group, usable: Sequence[Candidate]) -> Reason | None:
    """Why nothing can be paired with anything; None where there are two answers."""
    if len(usable) >= 2:
        return None
    if not any(map(has_words, group.completions)):
        return _wordless(group)
    return "one_candidate" if usable else "no_score"


def _wordless(group: Group) -> Reason:
    failed = any(completion.finish_reason == "error" for completion in group.completions)
    return "failed" if failed else "empty"
