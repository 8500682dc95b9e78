"""Strengths out of wins, on numbers worked by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.rewards.tournament import PRIOR, Match, bradley_terry, win_chances, win_shares

TRIANGLE = [Match(0, 1, 1.0), Match(1, 2, 1.0), Match(2, 0, 1.0)]


def test_win_shares_by_hand() -> None:
    assert win_shares([Match(0, 1, 1.0), Match(2, 0, 0.5)]) == {0: 0.75, 1: 0.0, 2: 0.5}
    assert win_shares([]) == {}


def test_two_players_have_a_closed_form() -> None:
    """3 of 4 won: without a prior the odds would be 3; every strength s is pulled by PRIOR draws against 0."""
    strengths = bradley_terry([Match(0, 1, 1.0, 3.0), Match(0, 1, 0.0, 1.0)])
    odds = math.exp(strengths[0] - strengths[1])
    p = math.sqrt(odds)  # p and 1/p, by symmetry
    # stationary: 3 - 4 p / (p + 1/p) + PRIOR (1/2 - p / (p + 1)) = 0
    assert 3 - 4 * p / (p + 1 / p) + PRIOR * (0.5 - p / (p + 1)) == pytest.approx(0.0, abs=1e-6)
    assert 2.5 < odds < 3.0


def test_a_circle_has_no_best_and_a_winner_of_everything_stays_finite() -> None:
    assert bradley_terry(TRIANGLE) == pytest.approx({0: 0.0, 1: 0.0, 2: 0.0})
    strengths = bradley_terry([Match(0, 1, 1.0), Match(0, 2, 1.0), Match(1, 2, 1.0)])
    assert strengths[0] > strengths[1] > strengths[2] and all(map(math.isfinite, strengths.values()))
    assert sum(strengths.values()) == pytest.approx(0.0)
    assert bradley_terry([]) == {}


def test_strength_counts_whom_one_beat() -> None:
    """1 beat the strong 0 once, 3 beat the weak 2 once: equal shares, unequal strengths."""
    matches = [Match(0, 2, 1.0, 5.0), Match(1, 0, 1.0), Match(3, 2, 1.0)]
    assert win_shares(matches)[1] == win_shares(matches)[3] == 1.0
    strengths = bradley_terry(matches)
    assert strengths[1] > strengths[3]


def test_chances_are_probabilities_against_the_field() -> None:
    chances = win_chances({0: math.log(3), 1: 0.0})
    assert chances == pytest.approx({0: 0.75, 1: 0.25})
    assert win_chances({0: 1.0}) == {}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from([0.0, 0.5, 1.0])), max_size=12))
def test_any_matches_have_strengths_that_do_not_depend_on_their_order(told: list[tuple[int, int, float]]) -> None:
    matches = [Match(i, j, points) for i, j, points in told if i != j]
    strengths = bradley_terry(matches)
    assert all(map(math.isfinite, strengths.values()))
    turned = [Match(m.second, m.first, 1 - m.points) for m in reversed(matches)]
    assert bradley_terry(turned) == pytest.approx(strengths, abs=1e-5)


def test_only_players_have_points() -> None:
    with pytest.raises(ValueError, match="did not play"):
        Match(0, 1, 1.0).points_of(2)
