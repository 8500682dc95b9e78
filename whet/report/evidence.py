"""Whether a change is more than chance: what red flags ask before they fire.

    fall = watched_turn(points, "accuracy", least=0.1)      # None, or from where to where

Errors are standard errors. Where the number of items behind a value is known they follow from it, else from how the
points scatter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import fmean, median, stdev

from whet.report.evaluation import LOWER_IS_BETTER

Point = tuple[float, float]
"""Step and value."""
SURE = 2.5
"""Standard errors between two means that chance does not explain."""
FEWEST_ITEMS = 50
"""Items that shares are taken to be of where they are too round to say: tenths may be of ten or of a thousand."""
MOST_ITEMS = 20_000
"""Items of a watched task: a fraction with a larger denominator is no share that was counted."""
ENOUGH_TO_SCATTER = 5
"""Points whose bends say how much they scatter."""
NORMAL_MEDIAN = 0.6745
"""Of the size of a normal value, in standard deviations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The mean of some values, and how far it may be off."""

    mean: float
    error: float


def part(points: Sequence[Point]) -> Part:
    """Of raw points: those of a moving average depend on each other, and their scatter says too little."""
    values = [y for _, y in points]
    return Part(mean=fmean(values), error=stdev(values) / math.sqrt(len(values)))


def apart(one: Part, other: Part) -> bool:
    """Whether two means differ by more than chance explains."""
    return abs(one.mean - other.mean) > SURE * math.hypot(one.error, other.error)


def luck(looks: float) -> float:
    """Standard errors by which the best of so many equal values passes the last of them in 1 case of 40.

    The best of many is high by being the best: sqrt(2 log looks) is how its expectation grows.
    """
    return 1.6 + math.sqrt(2 * math.log(max(2.0, looks)))


def average_error(values: Sequence[float], weight: float, num: int) -> float:
    """Of the moving average of the first `num` raw values, whose noise is that of them all."""
    left = weight**num
    return scatter(values) * math.sqrt((1 - weight) / (1 + weight) * (1 + left) / (1 - left))


def scatter(values: Sequence[float]) -> float:
    """Standard deviation of single values around their trend, whatever it is: by their successive differences."""
    differences = [after - before for before, after in pairwise(values)]
    return math.sqrt(fmean([one * one for one in differences]) / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """From its best a watched number went to its last."""

    best: Point
    last: Point

    @property
    def words(self) -> str:
        """
        >>> Turn(best=(10.0, 0.5), last=(30.0, 0.3)).words
        'from 0.5 (step 10) to 0.3 (step 30)'
        """
        (best_step, best), (last_step, last) = self.best, self.last
        return f"from {best:.3g} (step {best_step:g}) to {last:.3g} (step {last_step:g})"


def watched_turn(points: Sequence[Point], metric: str, *, least: float) -> Turn | None:
    """None where the last value is not worse than the best by more than `least`, or where chance explains it.

    Of a metric that should fall, a perplexity, `least` is a ratio's logarithm.
    """
    lower = metric in LOWER_IS_BETTER
    if len(points) < 3 or (lower and min(y for _, y in points) <= 0):
        return None
    worth = [-math.log(y) if lower else y for _, y in points]
    place = max(range(len(points)), key=worth.__getitem__)
    if worth[place] - worth[-1] <= max(least, luck(len(points)) * _error(worth, place, metric)):
        return None
    return Turn(best=points[place], last=points[-1])


def _error(worth: Sequence[float], place: int, metric: str) -> float:
    """Of one value, as far as it is known: by the items that were counted, or by how the points scatter."""
    num = fewest_items(worth, metric)
    if num is not None:
        num = max(num, FEWEST_ITEMS)
        return math.sqrt(sum(_variance(share, num) for share in (worth[place], worth[-1])) / 2)
    return _bends(worth) if len(worth) >= ENOUGH_TO_SCATTER else 0.0


def _variance(share: float, num: int) -> float:
    """Of a share of `num` items; two are added on either side, since none of a few is no certainty (Agresti, Coull)."""
    softened = (share * num + 2) / (num + 4)
    return softened * (1 - softened) / num


def _bends(values: Sequence[float]) -> float:
    """Scatter of few points: by their second differences, so that a steady rise or fall is none, and by the median of
    them, so that one turn from a rise to a fall is none either."""
    bends = [abs(one - 2 * two + three) for one, two, three in zip(values, values[1:], values[2:], strict=False)]
    return median(bends) / NORMAL_MEDIAN / math.sqrt(6)


def fewest_items(values: Sequence[float], metric: str) -> int | None:
    """How many items were counted, which is not logged: shares of n items are all multiples of 1/n.

    The smallest such n, so that chance is given too much rather than too little; None where they are no such shares.

    >>> fewest_items([0.5, 0.42, 0.38], "accuracy"), fewest_items([0.123456789, 0.5], "accuracy")
    (50, None)
    """
    if metric not in ("accuracy", "win_rate") or not all(0 <= value <= 1 for value in values):
        return None
    found = [Fraction(value).limit_denominator(MOST_ITEMS) for value in values]
    if any(abs(float(share) - value) > 1e-12 for share, value in zip(found, values, strict=True)):
        return None
    num = math.lcm(*(share.denominator for share in found))
    if metric == "win_rate":  # a tie counts one half
        num = max(1, num // 2)
    return num if num <= MOST_ITEMS else None
