"""The schedule, by hand."""

from __future__ import annotations

import pytest

from whet.config.train import Train
from whet.train.optim import learning_rate


def rates(num: int, **settings: object) -> list[float]:
    train = Train(learning_rate=1.0, **settings)
    return [learning_rate(step, num, train) for step in range(num)]


def test_warmup_rises_linearly_and_is_never_zero() -> None:
    assert rates(10, warmup_steps=3, schedule="constant")[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_cosine_and_linear_fall_to_their_floor_after_the_last_step() -> None:
    assert rates(4, warmup_steps=0, schedule="linear") == pytest.approx([1.0, 0.75, 0.5, 0.25])
    # 0.5 (1 + cos(pi k / 4)), k = 0..3
    assert rates(4, warmup_steps=0, schedule="cosine") == pytest.approx([1.0, 0.8535533906, 0.5, 0.1464466094])
    assert rates(4, warmup_steps=0, schedule="linear", min_lr_ratio=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_ratio_counts_steps_of_the_whole_training() -> None:
    assert rates(100, warmup_ratio=0.05, schedule="constant")[4] == pytest.approx(5 / 6)
    assert rates(100, warmup_ratio=0.05, schedule="constant")[5] == 1.0
