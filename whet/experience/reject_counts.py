"""What rejection sampling found, as running sums: nothing here grows with the number of prompts.

The unit is the prompt. Answers to one prompt are not independent, so rates are means over prompts of a prompt's share.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from whet.experience.accept import Fates
from whet.experience.pass_at_k import PassAtK, Running
from whet.experience.sampled import Row, Sampled, row_of

BINS = 20
"""Of the lengths, between none and the longest that an answer may have."""
MOST_REASONS = 50
"""Different reasons that are told apart; further ones are counted together."""


@dataclass(slots=True)
class FileCounts:
    """The prompts of one file."""

    prompts: int = 0
    solved: int = 0
    shares: Running = field(default_factory=Running)
    """Share of right answers, over prompts with a scored one."""


@dataclass(slots=True)
class Lengths:
    """Tokens of the answers of one kind."""

    num: int = 0
    tokens: int = 0
    counts: list[int] = field(default_factory=lambda: [0] * BINS)

    def add(self, num_tokens: int, most: int) -> None:
        self.num += 1
        self.tokens += num_tokens
        self.counts[min(BINS - 1, num_tokens * BINS // most)] += 1


@dataclass(slots=True, kw_only=True)
class RejectCounts:
    """Sums over the groups that were added."""

    group_size: int
    max_new_tokens: int
    num_logged: int
    seed: int
    prompts: int = 0
    solved: int = 0
    unsolved: int = 0
    """Prompts with scored answers, none of them right."""
    fates: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    """Why answers are failed or without a score."""
    pass_at_k: PassAtK = field(init=False)
    shares: Running = field(default_factory=Running)
    """Share of right answers, over prompts with a scored one."""
    files: dict[str, FileCounts] = field(default_factory=dict)
    right: Lengths = field(default_factory=Lengths)
    wrong: Lengths = field(default_factory=Lengths)
    samples: list[tuple[int, Row]] = field(default_factory=list)
    """Groups drawn for reading, each with its place."""
    _draw: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.pass_at_k = PassAtK(self.group_size)
        self._draw = random.Random(f"samples {self.seed}")

    def add(self, group: Sampled, fates: Fates) -> None:
        place, self.prompts = self.prompts, self.prompts + 1
        self.fates.update(fates.of)
        self.pass_at_k.add(fates.scored, fates.right)
        of_file = self.files.setdefault(group.prompt.origin.file, FileCounts())
        of_file.prompts += 1
        if fates.scored:
            self.solved += bool(fates.right)
            self.unsolved += not fates.right
            of_file.solved += bool(fates.right)
            self.shares.add(fates.right / fates.scored)
            of_file.shares.add(fates.right / fates.scored)
        for answer, right in zip(group.answers, fates.is_right, strict=True):
            if answer.score is None:
                self._reason(answer.error)
            else:
                (self.right if right else self.wrong).add(answer.num_tokens, self.max_new_tokens)
        self._sample(place, group, fates)

    def _reason(self, error: str | None) -> None:
        reason = (error or "no reason given").partition(" (found ")[0]
        self.reasons[reason if reason in self.reasons or len(self.reasons) < MOST_REASONS else "other reasons"] += 1

    def _sample(self, place: int, group: Sampled, fates: Fates) -> None:
        """Keep the group with the chance that makes all equally likely in the end (algorithm R, Vitter 1985)."""
        if len(self.samples) < self.num_logged:
            self.samples.append((place, judged_row(group, fates)))
        elif self.num_logged and (drawn := self._draw.randrange(place + 1)) < self.num_logged:
            self.samples[drawn] = (place, judged_row(group, fates))

    def sampled_rows(self) -> list[Row]:
        """The groups drawn for reading, in their order."""
        return [row for _, row in sorted(self.samples, key=lambda sample: sample[0])]


def judged_row(group: Sampled, fates: Fates) -> Row:
    """The group's line with what became of each answer."""
    row = row_of(group)
    row["answers"] = [answer | {"fate": fate} for answer, fate in zip(row["answers"], fates.of, strict=True)]
    return row
