"""Several rewards as one: a weighted sum, held back where a gate is missed.

    value = sum of weight x clip(normalise(part))        otherwise, where a gated part is below its gate

Every part is measured for every completion and logged as it is, before it is normalised, clipped or weighted. A part
without a value leaves the whole without one, unless its weight is 0 or a gate has decided already.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from whet.config.rewards import RewardPart
from whet.rewards.normalise import Running
from whet.rewards.reward import Reward, finite
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One term."""

    config: RewardPart
    reward: Reward
    running: Running | None = None
    """Mean and spread of its values so far, where they are normalised."""

    def term(self, value: float) -> float:
        """What a value adds to the sum."""
        if self.running is not None:
            value = self.running.scaled(value)
        if self.config.clip is not None:
            low, high = self.config.clip
            value = min(high, max(low, value))
        return self.config.weight * value


@dataclass(frozen=True, slots=True, kw_only=True)
class CompositeReward:
    """The sum of its parts."""

    parts: tuple[Part, ...]
    otherwise: float = 0.0

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        """Values of this call are counted before they are normalised: the first ones are on the scale as well."""
        columns = [part.reward.score(prompts, completions) for part in self.parts]
        for part, column in zip(self.parts, columns, strict=True):
            if part.running is not None:
                part.running.update([score.value for score in column if score.value is not None])
        return [self._sum(row) for row in zip(*columns, strict=True)]

    def _sum(self, row: Sequence[Score]) -> Score:
        logged, votes = dict(_logged(self.parts, row)), tuple(vote for score in row for vote in score.votes)
        both = list(zip(self.parts, row, strict=True))
        for part, score in both:
            if part.config.gate is not None and score.value is not None and score.value < part.config.gate:
                return Score(value=self.otherwise, parts=logged, votes=votes)
        terms = []
        for part, score in both:
            if score.value is not None:
                terms.append(part.term(score.value))
            elif part.config.weight != 0.0 or part.config.gate is not None:
                return Score(value=None, parts=logged, votes=votes, error=f"{part.config.name}: {score.error}")
        total = finite(math.fsum(terms), "the sum of the parts")
        return Score(value=total.value, parts=logged, votes=votes, error=total.error)


def _logged(parts: Sequence[Part], row: Sequence[Score]) -> Iterator[tuple[str, float]]:
    """Every part's value by its name, and what it is made of as NAME/PIECE."""
    for part, score in zip(parts, row, strict=True):
        if score.value is not None:
            yield part.config.name, score.value
        for name, value in score.parts.items():
            yield f"{part.config.name}/{name}", value
