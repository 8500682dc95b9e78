"""Rewards on one scale: less the mean, over the standard deviation, of everything seen so far (Welford 1962)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from whet.rewards.reward import Reward
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion, Score

LEAST_STD = 1e-8
"""Values that hardly differ are centred, not blown up."""


@dataclass(slots=True)
class Running:
    """Mean and spread of all values so far. Its numbers go on in a run that is resumed."""

    num: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean."""
    stands: bool = False
    """Further values are measured by it, and do not count."""

    @property
    def std(self) -> float:
        """Standard deviation with Bessel's correction; 0 of fewer than two values."""
        return math.sqrt(self.squares / (self.num - 1)) if self.num > 1 else 0.0

    def update(self, values: Sequence[float]) -> None:
        """Count further values."""
        for value in () if self.stands else values:
            self.num += 1
            distance = value - self.mean
            self.mean += distance / self.num
            self.squares += distance * (value - self.mean)

    def scaled(self, value: float) -> float:
        """The value, centred; and divided by the standard deviation where there is one."""
        std = self.std
        return (value - self.mean) / (std if std > LEAST_STD else 1.0)

    def state(self) -> dict[str, float]:
        return {"num": float(self.num), "mean": self.mean, "squares": self.squares}

    def restore(self, state: Mapping[str, float]) -> None:
        self.num, self.mean, self.squares = int(state["num"]), float(state["mean"]), float(state["squares"])


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalisedReward:
    """Another reward's scores on one scale; what they were stands in the part `raw`."""

    reward: Reward
    running: Running = field(default_factory=Running)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        """Values of this call are counted before they are normalised: the first ones are on the scale as well."""
        scores = self.reward.score(prompts, completions)
        self.running.update([score.value for score in scores if score.value is not None])
        return [self._scaled(score) for score in scores]

    def _scaled(self, score: Score) -> Score:
        if score.value is None:
            return score
        return replace(score, value=self.running.scaled(score.value), parts={**score.parts, "raw": score.value})
