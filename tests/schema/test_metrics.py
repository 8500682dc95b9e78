"""Metrics that merge: the mean of two halves is the mean of the whole, and kinds do not mix."""

from __future__ import annotations

import math

import pytest

from whet.schema.metrics import Max, Mean, Metric, Sum, merge, values


def test_a_mean_remembers_how_many() -> None:
    # 2 of 1.5 and 6 of 2.5: (3 + 15) / 8 = 2.25, not the 2.0 of averaged averages.
    assert values(merge([{"a": Mean(3.0, 2)}, {"a": Mean(15.0, 6)}])) == {"a": 2.25}


def test_merging_is_the_same_in_any_grouping() -> None:
    parts: list[dict[str, Metric]] = [
        {"m": Mean(1.0, 1), "s": Sum(2.0), "x": Max(3.0)}, {"m": Mean(5.0, 3)}, {"s": Sum(4.0), "x": Max(1.0)},
    ]  # fmt: skip
    assert merge(parts) == merge([merge(parts[:1]), merge(parts[1:])]) == merge([merge(parts[:2]), merge(parts[2:])])
    assert values(merge(parts)) == {"m": 1.5, "s": 6.0, "x": 3.0}


def test_nothing_seen_is_not_zero() -> None:
    assert math.isnan(Mean(0.0, 0).value)
    assert merge([]) == {}


def test_kinds_do_not_mix() -> None:
    with pytest.raises(TypeError, match="'loss' is a Mean and a Sum"):
        merge([{"loss": Mean(1.0, 1)}, {"loss": Sum(1.0)}])
