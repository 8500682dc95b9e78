"""pass@k against all subsets, and against what is drawn."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from whet.experience.pass_at_k import PassAtK, ks, pass_at_k


@pytest.mark.parametrize("num", range(1, 7))
def test_it_is_the_share_of_subsets_with_a_right_answer(num: int) -> None:
    for right in range(num + 1):
        answers = [1] * right + [0] * (num - right)
        for k in range(1, num + 1):
            subsets = list(combinations(answers, k))
            expected = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(num, right, k) == pytest.approx(expected, abs=1e-12)


def test_it_is_not_biased() -> None:
    """Over prompts that are right with chance p, its mean is 1 - (1 - p)^k; the plain 1 - (1 - c / n)^k is above."""
    draw, p, num, k = random.Random(0), 0.3, 8, 4
    rights = [sum(draw.random() < p for _ in range(num)) for _ in range(20_000)]
    mean = sum(pass_at_k(num, right, k) for right in rights) / len(rights)
    plugged_in = sum(1 - (1 - right / num) ** k for right in rights) / len(rights)
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=0.005)
    assert abs(plugged_in - (1 - (1 - p) ** k)) > 0.02


def test_large_numbers_do_not_overflow() -> None:
    assert 0 < pass_at_k(10_000, 1, 100) == pytest.approx(0.01)


@pytest.mark.parametrize(("num", "right", "k"), [(3, 1, 4), (3, 1, 0), (3, 4, 1), (3, -1, 1)])
def test_what_makes_no_sense(num: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(num, right, k)


def test_sums_over_prompts() -> None:
    assert ks(1) == (1,) and ks(6) == (1, 2, 4, 6) and ks(8) == (1, 2, 4, 8)
    found = PassAtK(4)
    for num, right in ((4, 2), (4, 0), (3, 3), (0, 0)):
        found.add(num, right)
    assert {k: (running.num, running.total) for k, running in found.of.items()} == {
        1: (3, 1.5), 2: (3, pytest.approx(1 + 5 / 6)), 4: (2, 1.0)
    }  # fmt: skip
