"""Columns of `metrics.jsonl` as series: missing and not-finite values are gaps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from whet.report.figures import Numbers, Role, Series
from whet.runs.reader import Row

SMOOTHING = 0.9
LARGEST = 3.4e38
"""What fp32 holds: sums of more overflow, and no training has it."""


def column(rows: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have `name`."""
    having = [row for row in rows if name in row]
    return [float(row["step"]) for row in having], [_number(row[name]) for row in having]


def number(row: Row, name: str) -> float:
    """A value of a row; NaN where it is missing or no number."""
    return _number(row.get(name))


def finite(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    """(step, value) of the rows where `name` is a finite number that fp32 holds."""
    return [(x, y) for x, y in zip(*column(rows, name), strict=True) if abs(y) <= LARGEST]


def has(rows: Sequence[Row], name: str) -> bool:
    return bool(finite(rows, name))


def names(rows: Sequence[Row], prefix: str, suffix: str = "") -> list[str]:
    """Columns that begin and end so, in the order in which they appear."""
    found = dict.fromkeys(name for row in rows for name in row)
    return [name for name in found if name.startswith(prefix) and name.endswith(suffix)]


def watched_numbers(rows: Sequence[Row]) -> list[str]:
    """Columns `watch/TASK/METRIC`, whatever slashes a task's name has; `watch/TASK/METRIC/GROUP`, the breakdown of
    another column, stays out."""
    found = names(rows, "watch/")
    known = set(found)
    return [name for name in found if known.isdisjoint(_beginnings(name))]


def _beginnings(name: str) -> Iterator[str]:
    """What a column may break down: its name before any slash."""
    return (name[:place] for place, letter in enumerate(name) if letter == "/")


def smoothed(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    """(step, moving average) of the rows where `name` is a finite number."""
    points = finite(rows, name)
    return [(x, y) for (x, _), y in zip(points, moving_average([y for _, y in points], SMOOTHING), strict=True)]


def step_series(rows: Sequence[Row], name: str, label: str, role: Role) -> Series:
    """One value a step: smoothed where there are enough steps to smooth."""
    x, y = column(rows, name)
    weight = SMOOTHING if len(x) >= 40 else 0.6 if len(x) >= 10 else None
    return Series(label, x, y, role, smooth=weight, markers=weight is None)


def eval_series(rows: Sequence[Row], name: str, label: str, role: Role) -> Series:
    """Few measured points."""
    x, y = column(rows, name)
    return Series(label, x, y, role, markers=True)


def moving_average(values: Numbers, weight: float) -> list[float]:
    """Exponential moving average without the pull of its start (Kingma and Ba, 1412.6980, section 3); gaps stay gaps.

    >>> moving_average([4.0, 4.0, 2.0], 0.5)
    [4.0, 4.0, 2.857142857142857]
    """
    smoothed, total, mass = [], 0.0, 0.0
    for value in values:
        if math.isfinite(value):
            total, mass = weight * total + (1 - weight) * value, weight * mass + (1 - weight)
        smoothed.append(total / mass if mass and math.isfinite(value) else math.nan)
    return smoothed


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
