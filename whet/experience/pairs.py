"""Scored groups -> preferences: the best candidate against the worst (Yuan et al., 2401.10020, section 2.2).

    scores 4, 2, 5, 2  ->  chosen the third, rejected the second (of equals the first drawn)

Every group ends in exactly one count: `kept`, or the reason why no pair came of it. Ties are dropped unless asked for,
because a pair of equals teaches the model whatever else happens to differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from whet.config.rollout import OnlinePairs
from whet.schema.rollouts import Completion, Group

Reason = Literal["empty", "no_score", "one_candidate", "identical", "ties", "below_margin"]
REASONS: dict[Reason, str] = {
    "empty": "every answer is empty",
    "no_score": "no judgement could be read",
    "one_candidate": "only one answer has a score",
    "identical": "best and worst are the same text",
    "ties": "best and worst have the same score",
    "below_margin": "best and worst differ by no more than pairs.min_margin",
}
"""Why a group gives no pair, in words for the console and the error."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer that can stand in a pair: not empty, and scored."""

    index: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Pair:
    chosen: Candidate
    rejected: Candidate


@dataclass(slots=True)
class PairCounts:
    """What became of the groups: total = kept + dropped by reason."""

    total: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Pair | Reason) -> None:
        self.total += 1
        if isinstance(outcome, Pair):
            self.kept += 1
        else:
            self.dropped[outcome] += 1

    def to_json(self) -> dict[str, int]:
        return {"total": self.total, "kept": self.kept} | {reason: self.dropped[reason] for reason in REASONS}

    def describe(self) -> str:
        """One line for the console, the commonest reason first."""
        reasons = [f"{count}: {REASONS[reason]}" for reason, count in self.dropped.most_common()]  # type: ignore[index]
        return f"{self.kept} pairs of {self.total} prompts" + (f" ({'; '.join(reasons)})" if reasons else "")


def candidates(group: Group) -> list[Candidate]:
    """Those with words and a score."""
    return [
        Candidate(index, completion.text, score.value)
        for index, (completion, score) in enumerate(zip(group.completions, group.scores, strict=True))
        if score.value is not None and has_words(completion)
    ]


def has_words(completion: Completion) -> bool:
    return bool(completion.text.strip())


def select_pair(group: Group, config: OnlinePairs) -> Pair | Reason:
    """Best against worst, or why not."""
    usable = candidates(group)
    if len(usable) < 2:
        if not any(map(has_words, group.completions)):
            return "empty"
        return "one_candidate" if usable else "no_score"
    best = max(usable, key=lambda candidate: candidate.score)
    others = [candidate for candidate in usable if candidate.text != best.text]
    if not others:
        return "identical"
    if best.score == min(candidate.score for candidate in usable):
        return Pair(best, others[0]) if config.keep_ties else "ties"
    worst = min(usable, key=lambda candidate: candidate.score)
    if worst.text == best.text:
        return "identical"
    return Pair(best, worst) if best.score - worst.score > config.min_margin else "below_margin"


def select_pairs(groups: Iterable[Group], config: OnlinePairs) -> tuple[list[Pair | Reason], PairCounts]:
    """The outcome for each group, and their counts."""
    counts = PairCounts()
    outcomes = [select_pair(group, config) for group in groups]
    for outcome in outcomes:
        counts.add(outcome)
    return outcomes, counts
