"""Mean and variance of numbers that lie on several ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Moments:
    """How many numbers, their sum and that of their squares: three plain sums, which add over micro-batches and ranks.

    Summed in float64, so that little is lost between the squares and the square of the mean.
    """

    count: float
    total: float
    squares: float

    @staticmethod
    def of(values: Tensor) -> Moments:
        wide = values.detach().double()
        return Moments(float(wide.numel()), float(wide.sum()), float(wide.square().sum()))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        return self.total / max(self.count, 1.0)

    @property
    def variance(self) -> float:
        """With Bessel's correction; 0 of fewer than two numbers."""
        return max(self.squares - self.total * self.mean, 0.0) / max(self.count - 1.0, 1.0)


def whiten(values: Tensor, moments: Moments, *, epsilon: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon), the moments over tokens; verl's and TRL's epsilon and correction."""
    return (values - moments.mean) / math.sqrt(moments.variance + epsilon)
