"""Columns of `metrics.jsonl` as series: missing and not-finite values are gaps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from whet.report.figures import Numbers, Role, Series
from whet.runs.reader import Row

SMOOTHING = 0.9


def column(rows: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have `name`."""
    having = [row for row in rows if name in row]
    return [float(row["step"]) for row in having], [_number(row[name]) for row in having]


def finite(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    """(step, value) of the rows where `name` is a finite number."""
    return [(x, y) for x, y in zip(*column(rows, name), strict=True) if math.isfinite(y)]


def has(rows: Sequence[Row], name: str) -> bool:
    return bool(finite(rows, name))


def names(rows: Sequence[Row], prefix: str, suffix: str = "") -> list[str]:
    """Columns that begin and end so, in the order in which they appear."""
    found = dict.fromkeys(name for row in rows for name in row)
    return [name for name in found if name.startswith(prefix) and name.endswith(suffix)]


def smoothed(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    """(step, moving average) where every value is a finite number, else the finite values as they are."""
    points = finite(rows, name)
    x, y = column(rows, name)
    return list(zip(x, moving_average(y, SMOOTHING), strict=True)) if len(points) == len(x) else points


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
