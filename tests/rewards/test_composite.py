"""Sums of rewards by hand: weights, gates, bounds, running scales, and what a failed part does."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rewards.made import completion, prompt
from whet.config.rewards import RewardPart
from whet.config.rules import Exact
from whet.rewards.composite import CompositeReward, Part
from whet.rewards.normalise import NormalisedReward, Running
from whet.rewards.state import load_state, on_scale, save_state
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion, Score


@dataclass
class Fixed:
    """Gives what stands in the completion: `1`, or nothing for `-`; of several numbers its own."""

    place: int = 0

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        words = [completion.text.split()[self.place] for completion in completions]
        return [
            Score(value=None, error="broken") if word == "-" else Score(value=float(word), parts={"piece": 2.0})
            for word in words
        ]


def part(name: str, place: int, **config: object) -> Part:
    section = RewardPart.model_validate({"name": name, "reward": Exact()} | config)
    running = Running() if section.normalise == "running" else None
    return Part(config=section, reward=Fixed(place), running=running)


def scores(reward: CompositeReward | NormalisedReward, *texts: str) -> list[Score]:
    return reward.score([prompt()] * len(texts), [completion(text) for text in texts])


def test_the_weighted_sum() -> None:
    reward = CompositeReward(parts=(part("a", 0, weight=2.0), part("b", 1, weight=-0.5)))
    (score,) = scores(reward, "3 4")
    assert score.value == 2.0 * 3 - 0.5 * 4
    assert score.parts == {"a": 3.0, "a/piece": 2.0, "b": 4.0, "b/piece": 2.0}


def test_bounds_are_those_of_the_value_not_of_the_term() -> None:
    reward = CompositeReward(parts=(part("a", 0, weight=2.0, clip=(-1.0, 5.0)),))
    assert [score.value for score in scores(reward, "7", "-3", "4")] == [10.0, -2.0, 8.0]
    assert scores(reward, "7")[0].parts["a"] == 7.0, "the log has the value itself"


def test_a_gate_holds_the_whole_back() -> None:
    reward = CompositeReward(parts=(part("a", 0), part("b", 1, gate=1.0, weight=0.0)), otherwise=-1.0)
    assert [score.value for score in scores(reward, "3 1", "3 0.9", "- 0")] == [3.0, -1.0, -1.0]


def test_a_failed_part_leaves_no_score() -> None:
    reward = CompositeReward(parts=(part("a", 0), part("b", 1, weight=0.0), part("c", 2, gate=0.0, weight=0.0)))
    failed, logged_only, gate = scores(reward, "- 1 1", "1 - 1", "1 1 -")
    assert (failed.value, failed.error) == (None, "a: broken")
    assert failed.parts["b"] == 1.0 and "a" not in failed.parts
    assert logged_only.value == 1.0, "what weighs nothing is for the log only"
    assert (gate.value, gate.error) == (None, "c: broken"), "nobody knows whether it was reached"


def test_a_sum_that_is_no_number() -> None:
    reward = CompositeReward(parts=(part("a", 0, weight=1e308),))
    assert scores(reward, "1e10")[0].error == "the sum of the parts gives inf"


def test_a_running_scale_by_hand() -> None:
    """1, 2, 3: mean 2, standard deviation 1. Then 6: mean 3, squares 4 + 1 + 0 + 9 = 14, std sqrt(14 / 3)."""
    reward = CompositeReward(parts=(part("a", 0, normalise="running", weight=3.0),))
    assert [score.value for score in scores(reward, "1", "2", "3")] == [-3.0, 0.0, 3.0]
    (later,) = scores(reward, "6")
    assert later.value == pytest.approx(3.0 * 3 / math.sqrt(14 / 3))
    assert later.parts["a"] == 6.0


def test_equal_values_are_centred_only() -> None:
    reward = NormalisedReward(reward=Fixed())
    assert [score.value for score in scores(reward, "5", "5", "-")] == [0.0, 0.0, None]
    assert scores(reward, "5")[0].parts == {"piece": 2.0, "raw": 5.0}


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40), st.integers(0, 40))
def test_running_numbers_are_those_of_all_at_once(values: list[float], cut: int) -> None:
    running = Running()
    running.update(values[:cut])
    running.update(values[cut:])
    assert running.mean == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert running.std == pytest.approx(statistics.stdev(values), abs=1e-3, rel=1e-6)


@pytest.mark.parametrize("normalised", [False, True])
def test_a_resumed_run_goes_on(normalised: bool) -> None:
    def fresh() -> CompositeReward | NormalisedReward:
        if normalised:
            return NormalisedReward(reward=Fixed())
        return CompositeReward(parts=(part("a", 0, normalise="running"), part("b", 0)))

    first, again = fresh(), fresh()
    scores(first, "0.1", "0.7", "0.2")
    load_state(again, save_state(first))
    assert scores(first, "0.3", "0.4") == scores(again, "0.3", "0.4")
    assert save_state(first) == save_state(again)


@pytest.mark.parametrize("normalised", [False, True])
def test_a_scale_that_stands_still(normalised: bool) -> None:
    """What is measured by it neither counts for it nor for what was seen before."""
    reward: CompositeReward | NormalisedReward = CompositeReward(parts=(part("a", 0, normalise="running"),))
    if normalised:
        reward = NormalisedReward(reward=Fixed())
    scores(reward, "100", "300", "200")
    before = save_state(reward)
    with on_scale(reward, None):
        first = scores(reward, "1", "2", "3")
        scale = save_state(reward)
    assert [score.value for score in first] == [-1.0, 0.0, 1.0]
    for _ in range(2):
        with on_scale(reward, scale):
            assert [score.value for score in scores(reward, "4", "5")] == [2.0, 3.0]
    assert save_state(reward) == before


def test_the_state_of_another_reward_is_refused() -> None:
    plain = CompositeReward(parts=(part("a", 0),))
    assert save_state(plain) == {}
    with pytest.raises(ValueError, match="the state is of"):
        load_state(plain, save_state(NormalisedReward(reward=Fixed())))
