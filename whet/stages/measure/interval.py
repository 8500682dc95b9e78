"""95 % intervals. The unit is always the prompt (or record): answers to one prompt are not independent.

>>> value, low, high = proportion([1.0, 1.0, 0.0, 1.0])
>>> round(value, 2), round(low, 2), round(high, 2)
(0.75, 0.3, 0.95)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Z = 1.959964
"""97.5 % quantile of the normal distribution."""
RESAMPLES = 1000

Interval = tuple[float, float, float]
"""value, low, high"""


def wilson(share: float, num: float) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927): never leaves [0, 1], never empty at 0 or 1."""
    centre = (share + Z**2 / (2 * num)) / (1 + Z**2 / num)
    half = Z / (1 + Z**2 / num) * math.sqrt(share * (1 - share) / num + Z**2 / (4 * num**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def proportion(per_prompt: Sequence[float], samples: float = 1) -> Interval:
    """Mean of per-prompt shares in [0, 1], each over `samples` answers (their mean, where numbers differ).

    Wilson's interval at the effective number of answers p(1-p)/Var(mean) (Franco et al. 2019), which lies between the
    number of prompts, where all answers to a prompt agree, and prompts times samples, where they are independent. With
    one 0/1 answer per prompt it is Wilson's interval exactly; with fractional values it is on the safe side.
    """
    values = np.asarray(per_prompt, dtype=np.float64)
    return _proportion(len(values), float(values.mean()), float(values.var()), samples)


def proportion_of_sums(num: int, total: float, squares: float, samples: int = 1) -> Interval:
    """`proportion` from the number of the shares, their sum, and the sum of their squares."""
    share = total / num
    return _proportion(num, share, max(0.0, squares / num - share * share), samples)


def _proportion(num: int, share: float, variance: float, samples: float) -> Interval:
    effective = num * share * (1 - share) / variance if variance > 0 else float(num)
    low, high = wilson(share, min(max(effective, num), num * samples))
    return share, low, high


def ratio(totals: Sequence[float], counts: Sequence[float]) -> Interval:
    """Sum of totals over sum of counts, with the linearised standard error over records (Cochran 1977, ch. 6).

    Needs two records: one has no spread to speak of.
    """
    total, count = np.asarray(totals, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    num, value = len(total), float(total.sum() / count.sum())
    residual = total - value * count
    spread = math.sqrt(num / (num - 1) * float((residual**2).sum())) / float(count.sum())
    return value, value - Z * spread, value + Z * spread


def area(value: float, num_good: int, num_bad: int) -> Interval:
    """An area under the ROC curve, with the score interval of Newcombe (2006, part 2, method 5).

    The ends are where the value lies Z standard errors away, each by the variance that the end itself would have
    (Hanley and McNeil 1982). One taken from the answers is 0 where they are all apart, or all tied, and an interval
    without width would then claim to be sure.
    """
    return value, _far_end(value, 0.0, num_good, num_bad), _far_end(value, 1.0, num_good, num_bad)


def _far_end(value: float, limit: float, num_good: int, num_bad: int) -> float:
    """The area between `value` and `limit` that is Z of its own standard errors from the value, by bisection."""
    inside, outside = value, limit
    for _ in range(60):
        middle = (inside + outside) / 2
        if abs(value - middle) <= Z * math.sqrt(_area_variance(middle, num_good, num_bad)):
            inside = middle
        else:
            outside = middle
    return inside


def _area_variance(value: float, num_good: int, num_bad: int) -> float:
    """Variance of an area of exponential scores, the two numbers each replaced by their mean where they add up."""
    others = (num_good + num_bad) / 2 - 1
    spread = 1 + others * (1 - value) / (2 - value) + others * value / (1 + value)
    return value * (1 - value) * spread / (num_good * num_bad)


def bootstrap(
    statistics: NDArray[np.float64], value_of: Callable[[NDArray[np.float64]], float], *, seed: int
) -> Interval:
    """Percentile bootstrap over rows of additive statistics [num, K]; `value_of` turns their sum [K] into the value."""
    rng = np.random.default_rng(seed)
    num = len(statistics)
    drawn = rng.multinomial(num, np.full(num, 1 / num), size=RESAMPLES) @ statistics
    values = [value_of(row) for row in drawn]
    low, high = np.quantile(values, [0.025, 0.975])
    return value_of(statistics.sum(axis=0)), float(low), float(high)
