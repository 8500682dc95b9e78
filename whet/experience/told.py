"""What people said of answers to a prompt: the scores they gave, and which of two they called the better one.

    A > B   B > C   X > Y       three rows with one prompt: three pairs. Nobody compared A with Y.
    A 4     B 2     C 4         scores stand on one scale: A > B, C > B
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from whet.experience.collect import prompt_keys
from whet.rewards.transcript import transcript
from whet.schema.records import Preference, Prompt, Ranking, Record, Scored
from whet.schema.rollouts import Completion, Group


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanScored:
    """Answers to a prompt with what people thought of them."""

    group: Group
    values: tuple[float | None, ...]
    """The score of each answer, the higher the better, on whatever scale; None for one that was only compared."""
    reasons: tuple[str | None, ...]
    ordered: tuple[tuple[int, int], ...]
    """Places of every two answers that people told apart, the better one first; both ways where people disagree."""


@dataclass(slots=True)
class _Told:
    """What the rows with one prompt say, by the texts of the answers."""

    prompt: Prompt
    scores: dict[str, tuple[float, str | None]] = field(default_factory=dict)
    """Score and reason of answers that were scored one by one, on a scale that all their rows share."""
    beside: dict[str, float] = field(default_factory=dict)
    """Scores that stand beside a comparison, where nothing says that those of other rows are on the same scale."""
    texts: dict[str, None] = field(default_factory=dict)
    better: dict[tuple[str, str], None] = field(default_factory=dict)
    """Pairs in which a row calls the first text the better one."""

    def hear(self, record: Record) -> None:
        """Add what a row says. A text that is scored again keeps its first score."""
        match record:
            case Preference(chosen=chosen, rejected=rejected):
                better, worse = transcript(chosen), transcript(rejected)
                self._compare([(better, 1.0), (worse, 0.0)])
                high, low = record.chosen_score, record.rejected_score
                if high is not None and low is not None and high > low:
                    self.beside.setdefault(better, high)
                    self.beside.setdefault(worse, low)
            case Ranking(responses=responses, ranks=ranks):
                self._compare([(text, -rank) for text, rank in zip(responses, ranks, strict=True)])
            case Scored(responses=responses, values=values):
                self._compare(list(zip(responses, values, strict=True)))
                if record.kind == "reward":  # a weight is a share of its own row
                    for text, value in zip(responses, values, strict=True):
                        self.scores.setdefault(text, (value, _reason(record)))
            case _:
                raise TypeError(f"people scored no {type(record).__name__}")

    def told(self, key: str) -> HumanScored | None:
        """All of it; None where no answer has words."""
        texts = list(self.texts)
        if not texts:
            return None
        places = {text: place for place, text in enumerate(texts)}
        better = self.better | dict.fromkeys(_told_apart([(text, value) for text, (value, _) in self.scores.items()]))
        completions = tuple(
            Completion(key=f"{key}#{place}", ids=(), text=text, logprobs=(), finish_reason="stop")
            for place, text in enumerate(texts)
        )
        scores = [self.scores.get(text, (self.beside.get(text), None)) for text in texts]
        return HumanScored(
            group=Group(prompt=self.prompt, completions=completions, scores=(), columns={"key": key}),
            values=tuple(value for value, _ in scores),
            reasons=tuple(reason for _, reason in scores),
            # Where people contradict each other, nothing is told apart.
            ordered=tuple(
                (places[one], places[other])
                for one, other in better
                if one in places and other in places and (other, one) not in better
            ),
        )

    def _compare(self, answers: Sequence[tuple[str, float]]) -> None:
        self.texts |= dict.fromkeys(text for text, _ in answers if text.strip())
        self.better |= dict.fromkeys(_told_apart(answers))


def human_scored(records: Iterable[Record]) -> list[HumanScored]:
    """Preferences, rankings and scored answers as one thing; rows with the same prompt come together."""
    told: dict[str, _Told] = {}
    for record in records:
        prompt = Prompt(messages=record.prompt, columns=record.columns, origin=record.origin)  # type: ignore[union-attr]
        (key,) = prompt_keys([prompt])
        told.setdefault(key, _Told(prompt)).hear(record)
    return [found for key, one in told.items() if (found := one.told(key)) is not None]


def _told_apart(answers: Sequence[tuple[str, float]]) -> list[tuple[str, str]]:
    """Every two texts with different numbers, that with the higher one first."""
    return [
        (one, other) if mine > its else (other, one)
        for (one, mine), (other, its) in combinations(answers, 2)
        if mine != its and one != other
    ]


def _reason(record: Scored) -> str | None:
    """Why the answer has its score, where the row is about one and says so."""
    reason = record.columns.get("reason")
    return reason if isinstance(reason, str) and len(record.responses) == 1 else None
