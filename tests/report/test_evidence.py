"""Chance fires no red flag, and what is real still does: made-up runs, drawn with fixed seeds."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from statistics import fmean

import pytest

from whet.report import alarms, online_alarms
from whet.report.series import smoothed

Rows = list[dict]
TRUTH = "watch/t/accuracy"
RUNS = 200


def share(fires: Callable[[Rows], str | None], run: Callable[[random.Random], Rows]) -> float:
    """Of made-up runs: those in which it fires."""
    return fmean(bool(fires(run(random.Random(seed)))) for seed in range(RUNS))


def steps(name: str, values: list[float | None]) -> Rows:
    return [{"step": step, "loss": 0.6, name: value} for step, value in enumerate(values, start=1)]


def logps(rng: random.Random, batch: int, last: float, num: int = 100) -> Rows:
    """Answers of very different lengths, from -1 nat a token to `last`."""
    nats = [-1 + (last + 1) * step / (num - 1) for step in range(num)]
    return steps("logps/chosen", [one * fmean(rng.lognormvariate(4.1, 0.8) for _ in range(batch)) for one in nats])


def margins(rng: random.Random, first: float, last: float, noise: float, num: int = 100) -> Rows:
    return steps("rewards/margins", [first + (last - first) * n / (num - 1) + rng.gauss(0, noise) for n in range(num)])


def watched(rng: random.Random, first: float, last: float, prompts: int, num: int) -> Rows:
    shares = [first + (last - first) * place / (num - 1) for place in range(num)]
    counted = [sum(rng.random() < one for _ in range(prompts)) / prompts for one in shares]
    return [{"step": 10 * place, TRUTH: one} for place, one in enumerate(counted)]


@pytest.mark.parametrize("batch", [1, 4, 8])
def test_lengths_of_answers_are_no_collapse(batch: int) -> None:
    assert share(alarms.chosen_collapse, lambda rng: logps(rng, batch, -1.0)) <= 0.02


@pytest.mark.parametrize("batch", [4, 8])
def test_a_collapse_of_two_nats_a_token_fires(batch: int) -> None:
    assert share(alarms.chosen_collapse, lambda rng: logps(rng, batch, -3.0)) > 0.95


@pytest.mark.parametrize(("mean", "num"), [(0.0, 20), (0.0, 100), (0.01, 100)])
def test_noise_around_zero_is_no_fall_of_the_margin(mean: float, num: int) -> None:
    assert share(alarms.margin_falling, lambda rng: margins(rng, mean, mean, 0.01, num)) <= 0.06


def test_a_margin_that_halves_fires() -> None:
    assert share(alarms.margin_falling, lambda rng: margins(rng, 1.0, 0.5, 0.3)) > 0.95


def test_one_missing_margin_leaves_a_rising_one_silent() -> None:
    def rising(rng: random.Random) -> Rows:
        rows = margins(rng, 0.0, 1.0, 0.3)
        return [*rows[:50], rows[50] | {"rewards/margins": None}, *rows[51:]]

    assert share(alarms.margin_falling, rising) <= 0.02


@pytest.mark.parametrize(("prompts", "num"), [(50, 5), (50, 20), (100, 10), (200, 10)])
def test_a_flat_accuracy_does_not_fall(prompts: int, num: int) -> None:
    fires = partial(alarms.watched_falling, name=TRUTH)
    assert share(fires, lambda rng: watched(rng, 0.5, 0.5, prompts, num)) <= 0.07


@pytest.mark.parametrize("num", [3, 5, 20])
def test_a_third_lost_of_two_hundred_prompts_fires(num: int) -> None:
    fires = partial(alarms.watched_falling, name=TRUTH)
    assert share(fires, lambda rng: watched(rng, 0.9, 0.6, 200, num)) > 0.95


@pytest.mark.parametrize(("last", "least", "most"), [(0.5, 0.0, 0.06), (0.3, 0.95, 1.0)])
def test_a_rising_reward_over_a_truth_that_is_flat_or_falls(last: float, least: float, most: float) -> None:
    reward = steps("reward", [0.3 + 0.002 * step for step in range(100)])
    fires = partial(online_alarms.over_optimised, reward, truth=TRUTH)
    assert least <= share(fires, lambda rng: watched(rng, 0.5, last, 200, 11)) <= most


def test_numbers_that_are_no_counts_scatter_by_themselves() -> None:
    name = "watch/t/rougeL"

    def overlap(rng: random.Random, last: float) -> Rows:
        return [{"step": n, name: 40 + (last - 40) * n / 9 + rng.gauss(0, 3)} for n in range(10)]

    fires = partial(alarms.watched_falling, name=name)
    assert share(fires, lambda rng: overlap(rng, 40)) <= 0.08
    assert share(fires, lambda rng: overlap(rng, 15)) > 0.95


def test_a_turn_from_a_sharp_rise_to_a_fall_is_no_scatter() -> None:
    name = "watch/t/rougeL"
    rows = [{"step": step, name: value} for step, value in enumerate((20.0, 40.0, 36.0, 32.0, 28.0, 24.0))]
    assert alarms.watched_falling(rows, name) == "t/rougeL fell from 40 (step 1) to 24 (step 5)."


def test_one_missing_value_does_not_switch_smoothing_off() -> None:
    rows = steps("loss", [1.0, None, 3.0])
    assert [x for x, _ in smoothed(rows, "loss")] == [1, 3]
    assert smoothed(rows, "loss")[-1][1] == pytest.approx((0.9 * 1.0 + 3.0) / 1.9)


@pytest.mark.parametrize("name", ["rewards/margins", "logps/chosen", "watch/t/accuracy", "watch/t/perplexity"])
def test_numbers_too_large_to_add_up_stop_no_report(name: str) -> None:
    rows = steps(name, [(-1.0) ** step * 1e308 for step in range(30)])
    found = [alarms.margin_falling(rows), alarms.chosen_collapse(rows), alarms.watched_falling(rows, name)]
    assert found == [None, None, None]
