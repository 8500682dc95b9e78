"""Lengths and repetition, by numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rewards.made import completion, prompt
from whet.config.rules import Length, Overlong, Repetition
from whet.errors import ConfigError
from whet.rewards.reward import RuleReward
from whet.rewards.shape import length, overlong, repeated, repetition, soft_overlong


def tokens(reward: RuleReward, num: int) -> float | None:
    (scored,) = reward.score([prompt()], [completion("", ids=tuple(range(num)))])
    return scored.value


def words(reward: RuleReward, text: str) -> float | None:
    (scored,) = reward.score([prompt()], [completion(text)])
    return scored.value


@pytest.mark.parametrize(("num", "expected"), [(100, 1.0), (90, 0.9), (110, 0.9), (0, 0.0), (250, 0.0)])
def test_a_target(num: int, expected: float) -> None:
    assert tokens(length(Length(target=100)), num) == pytest.approx(expected)


@pytest.mark.parametrize(("num", "expected"), [(0, 1.0), (100, 1.0), (105, 0.75), (120, 0.0), (500, 0.0)])
def test_a_budget(num: int, expected: float) -> None:
    assert tokens(length(Length(budget=100, slack=20)), num) == pytest.approx(expected)


def test_words_and_characters() -> None:
    assert words(length(Length(unit="words", target=4)), "one two\nthree") == pytest.approx(0.75)
    assert words(length(Length(unit="characters", budget=2, slack=4)), "答案是十") == pytest.approx(0.5)


def test_chinese_has_words_without_spaces() -> None:
    assert words(length(Length(unit="words", budget=2, slack=4)), "答案是十。") == pytest.approx(0.5)
    assert words(repetition(Repetition(ngram=2, unit="words")), "好的好的好") == -0.5


def test_tokens_that_a_server_counts_and_does_not_name() -> None:
    counted = replace(completion("x" * 200, ids=()), counted_tokens=200)
    assert length(Length(budget=100)).score([prompt()], [counted])[0].value == 0.0
    (scored,) = repetition(Repetition()).score([prompt()], [counted])
    assert scored.value is None and "does not say which tokens" in str(scored.error)
    (scored,) = repetition(Repetition(unit="words")).score([prompt()], [counted])
    assert scored.value == 0.0


@pytest.mark.parametrize(
    ("num", "expected"), [(0, 0.0), (16384, 0.0), (17408, -0.25), (18432, -0.5), (20480, -1.0), (20481, -1.0)]
)
def test_dapos_own_numbers(num: int, expected: float) -> None:
    """Expected length 16,384, limit 20,480, the last 4,096 punished more and more (2503.14476, section 4.1)."""
    assert soft_overlong(num, 20480, 4096) == expected


def test_the_limit_of_the_rollouts() -> None:
    reward = overlong(Overlong(), max_new_tokens=100)
    assert [tokens(reward, num) for num in (80, 90, 100)] == [0.0, -0.5, -1.0]
    assert tokens(overlong(Overlong(max_tokens=10, cache=10), max_new_tokens=100), 5) == -0.5
    with pytest.raises(ConfigError, match=r"reward\.max_tokens: is required here"):
        overlong(Overlong(), max_new_tokens=None)
    with pytest.raises(ConfigError, match=r"more than the longest answer, 100 tokens \(found 4096\)"):
        overlong(Overlong(cache=4096), max_new_tokens=100)


@given(st.integers(0, 300), st.integers(1, 200), st.integers(1, 200))
def test_longer_is_never_better(num: int, limit: int, cache: int) -> None:
    cache = min(cache, limit)
    assert -1.0 <= soft_overlong(num + 1, limit, cache) <= soft_overlong(num, limit, cache) <= 0.0


def test_repetition_by_hand() -> None:
    """a b a b a has the bigrams ab ba ab ba: 2 of 4 are new."""
    assert words(repetition(Repetition(ngram=2, unit="words")), "a b a b a") == -0.5
    assert words(repetition(Repetition(ngram=3, unit="words")), "a b") == 0.0
    assert words(repetition(Repetition(ngram=1, unit="characters")), "aaaa") == -0.75
    assert tokens(repetition(Repetition()), 50) == 0.0


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 5))
def test_a_share_below_one(units: list[int], ngram: int) -> None:
    assert 0.0 <= repeated(units, ngram) < 1.0
    assert repeated(list(range(len(units))), ngram) == 0.0
