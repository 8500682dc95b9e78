"""FLOPs by hand: 1280 weights in two layers, a head of 640, queries of width 8."""

from __future__ import annotations

from tests.estimate.made import setting
from whet.estimate.time import Work, epoch_flops, forward_flops

WORK = Work(records=3, steps=2, tokens=10, targets=4, seen=50)
FORWARD = 2 * 10 * 1280 + 2 * 4 * 640 + 4 * 8 * 2 * 50


def test_forward() -> None:
    assert forward_flops(setting(), 10, 4, 50) == FORWARD


def test_a_reward_model_has_no_vocabulary() -> None:
    assert forward_flops(setting(scores=True), 10, 4, 50) == FORWARD - 2 * 4 * 640


def test_backward_is_twice_forward_and_once_where_weights_are_frozen() -> None:
    assert epoch_flops(setting(), WORK) == 3 * FORWARD
    assert epoch_flops(setting(trains="adapter", rank=2), WORK) == 2 * FORWARD


def test_a_value_model_trains_beside_the_policy_and_has_no_vocabulary() -> None:
    assert epoch_flops(setting(value_model=True), WORK) == 3 * (FORWARD + FORWARD - 2 * 4 * 640)


def test_passes_without_gradient_and_recomputation() -> None:
    work = Work(records=3, steps=2, tokens=10, targets=4, seen=50, extra_passes=1.0, recomputed=True)
    assert epoch_flops(setting(), work) == 5 * FORWARD
