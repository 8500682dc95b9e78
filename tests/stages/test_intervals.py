import math

import numpy as np
import pytest

from whet.stages.measure.interval import Z, area, bootstrap, proportion, proportion_of_sums, ratio, wilson


def test_wilson_by_hand():
    # 8 of 10: centre (0.8 + 0.19207)/(1 + 0.38415) = 0.71674, half 0.22659
    low, high = wilson(0.8, 10)
    assert (low, high) == pytest.approx((0.49015, 0.94333), abs=1e-4)


def test_one_answer_per_prompt_is_wilson():
    assert proportion([1.0] * 8 + [0.0] * 2) == pytest.approx((0.8, *wilson(0.8, 10)))


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_all_alike_still_has_an_interval(right):
    value, low, high = proportion([right] * 50, samples=4)
    assert (value, *sorted((low, high))) == pytest.approx((right, *wilson(right, 50)))
    assert high - low > 0.05


def test_many_answers_count_between_prompts_and_answers():
    agreeing = proportion([1.0, 0.0] * 50, samples=4)
    mixed = proportion([0.25, 0.75] * 50, samples=4)
    independent = proportion([1.0, 0.0] * 200)
    assert agreeing[1:] == pytest.approx(wilson(0.5, 100))
    assert independent[2] <= mixed[2] < agreeing[2]


@pytest.mark.parametrize("shares", [[0.25, 0.75, 1.0, 0.5], [1.0] * 9, [0.0, 1.0, 1.0], [0.1] * 7])
def test_sums_are_enough(shares):
    sums = len(shares), sum(shares), sum(share * share for share in shares)
    assert proportion_of_sums(*sums, 4) == pytest.approx(proportion(shares, 4), abs=1e-9)


def test_clustered_answers_cover_the_truth():
    """Per-prompt chances vary; 95 % intervals over prompts must hold the true mean about 95 times in 100."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        shares = rng.binomial(4, rng.beta(1, 2, size=120)) / 4
        _, low, high = proportion(shares.tolist(), samples=4)
        hits += low <= 1 / 3 <= high
    assert 370 <= hits <= 394


def test_ratio_weights_by_count_and_needs_spread():
    value, low, high = ratio([2.0, 9.0], [1.0, 3.0])
    # residuals 2 - 2.75 = -0.75 and 9 - 8.25 = 0.75; se = sqrt(2 * 1.125) / 4
    assert value == 2.75
    assert (high - value, value - low) == pytest.approx((1.959964 * 0.375,) * 2)
    assert ratio([2.0, 6.0], [1.0, 3.0]) == (2.0, 2.0, 2.0)


def test_bootstrap_is_seeded_and_close_to_the_normal_interval():
    rng = np.random.default_rng(1)
    rows = np.column_stack([rng.normal(10, 2, size=400), np.ones(400)])
    first = bootstrap(rows, lambda row: float(row[0] / row[1]), seed=3)
    assert first == bootstrap(rows, lambda row: float(row[0] / row[1]), seed=3)
    assert first[2] - first[1] == pytest.approx(2 * 1.96 * rows[:, 0].std() / math.sqrt(400), rel=0.1)


@pytest.mark.parametrize(("value", "num_good", "num_bad"), [(1.0, 2, 2), (0.5, 2, 2), (0.8, 30, 50), (0.97, 200, 40)])
def test_the_ends_of_an_area_lie_z_of_their_own_errors_away(value, num_good, num_bad):
    """Hanley and McNeil's variance, written out: Q1 = A/(2-A), Q2 = 2A^2/(1+A), both counts their mean less one."""
    found, *ends = area(value, num_good, num_bad)
    others = (num_good + num_bad) / 2 - 1
    assert found == value and 0 < ends[0] < 1
    for end in ends:
        first, second = end / (2 - end) - end**2, 2 * end**2 / (1 + end) - end**2
        error = math.sqrt((end * (1 - end) + others * first + others * second) / (num_good * num_bad))
        assert abs(value - end) == pytest.approx(Z * error, abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_an_area_covers_the_truth(shift):
    """Normal scores `shift` apart, whose area is Phi(shift / sqrt 2), with 12 good and 20 bad answers."""
    rng, truth = np.random.default_rng(0), 0.5 * (1 + math.erf(shift / 2))
    hits = 0
    for _ in range(400):
        good, bad = rng.normal(shift, 1, 12), rng.normal(0, 1, 20)
        _, low, high = area(float((good[:, None] > bad[None, :]).mean()), 12, 20)
        hits += low <= truth <= high
    assert 0.92 < hits / 400 <= 1.0
