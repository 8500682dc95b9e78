"""Metric values that know how to merge, so that micro-batches and ranks cannot average wrongly.

    >>> Mean(3.0, 2) + Mean(5.0, 2)
    Mean(total=8.0, count=4)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean kept as total and count."""

    total: float
    count: float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else float("nan")


@dataclass(frozen=True, slots=True)
class Sum:
    """A plain total: tokens, samples, seconds."""

    total: float

    def __add__(self, other: Sum) -> Sum:
        return Sum(self.total + other.total)

    @property
    def value(self) -> float:
        return self.total


@dataclass(frozen=True, slots=True)
class Max:
    """The largest value seen: peak memory, longest row."""

    largest: float

    def __add__(self, other: Max) -> Max:
        return Max(max(self.largest, other.largest))

    @property
    def value(self) -> float:
        return self.largest


Metric = Mean | Sum | Max


def merge(parts: Iterable[Mapping[str, Metric]]) -> dict[str, Metric]:
    """Merge metric dictionaries key by key. Raises TypeError where one key carries two kinds of metric."""
    merged: dict[str, Metric] = {}
    for part in parts:
        for name, metric in part.items():
            known = merged.get(name)
            if known is None:
                merged[name] = metric
            elif type(known) is not type(metric):
                raise TypeError(f"metric {name!r} is a {type(known).__name__} and a {type(metric).__name__}")
            else:
                merged[name] = known + metric  # type: ignore[operator]
    return merged


def values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """The plain numbers, for a log line."""
    return {name: metric.value for name, metric in metrics.items()}
