"""A judge's numbers about itself, worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.experience.groups import group
from whet.config.judge import Listwise, Pairwise, Pointwise, RewardJudge
from whet.experience.judging import judge_metrics, score_range
from whet.schema.rollouts import Group, Judgement

PLAIN = group(("a", 1.0), ("b", 2.0), ("c", 4.0))


def judged(*told: tuple[tuple[int, ...], tuple[float, ...] | None]) -> Group:
    return replace(PLAIN, judgements=tuple(Judgement(shown=s, reply="", reading=r) for s, r in told))


def test_votes_on_single_answers() -> None:
    told = judged(
        ((0,), (4.0,)), ((0,), (4.0,)), ((0,), None),
        ((1,), (3.0,)), ((1,), (5.0,)), ((1,), (3.0,)),
        ((2,), (1.0,)), ((2,), None), ((2,), None),
    )  # fmt: skip
    metrics = judge_metrics([told, PLAIN], Pointwise())
    # of three answers two were read twice, and one of those differs
    assert metrics == {
        "num_judgements": 9, "parse_failure_rate": pytest.approx(3 / 9), "judge_error_rate": 0.0,
        "vote_disagreement": 0.5,
    }  # fmt: skip
    failed = replace(told, judgements=(Judgement(shown=(0,), reply="", reading=None, error="busy"),))
    assert judge_metrics([failed], Pointwise())["judge_error_rate"] == 1.0
    heavy = replace(told, judgements=(replace(told.judgements[0], mass=0.5), replace(told.judgements[1], mass=0.9)))
    assert judge_metrics([heavy], Pointwise())["score_mass"] == pytest.approx(0.7)
    near = [Judgement(shown=(0,), reply="", reading=(score,), mass=0.9) for score in (3.9, 4.2)]
    assert judge_metrics([replace(told, judgements=tuple(near))], Pointwise())["vote_disagreement"] == 0.0


def test_comparisons() -> None:
    win, loss, tie = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)
    told = judged(
        ((0, 1), win), ((1, 0), loss),  # consistent: 0 wins
        ((0, 2), win), ((2, 0), win),  # the first place wins twice
        ((1, 2), tie), ((2, 1), tie),  # consistent tie
    )  # fmt: skip
    unread = judged(((0, 1), win), ((1, 0), None))
    metrics = judge_metrics([told, unread], Pairwise())
    assert metrics == {
        "num_judgements": 8, "parse_failure_rate": 1 / 8, "judge_error_rate": 0.0, "num_comparisons": 4,
        "swap_inconsistency_rate": pytest.approx(1 / 3), "comparison_tie_rate": pytest.approx(1 / 3),
        "first_place_share": pytest.approx(4 / 5),
    }  # fmt: skip


def test_the_same_ranking_in_another_order_is_no_disagreement() -> None:
    same = judged(((0, 1, 2), (1.0, 2.0, 3.0)), ((2, 0, 1), (3.0, 1.0, 2.0)))
    other = judged(((0, 1, 2), (1.0, 2.0, 3.0)), ((2, 0, 1), (1.0, 3.0, 2.0)))
    assert judge_metrics([same], Listwise())["vote_disagreement"] == 0.0
    assert judge_metrics([same, other], Listwise())["vote_disagreement"] == 0.5


def test_what_was_not_asked_has_no_numbers() -> None:
    assert judge_metrics([PLAIN], RewardJudge(path="rm")) == {}


def test_scales() -> None:
    assert score_range([PLAIN], Pointwise(low=1, high=10)) == (1, 10)
    assert score_range([PLAIN], Pairwise()) == score_range([PLAIN], Listwise()) == (0.0, 1.0)
    reward_model = RewardJudge(path="rm")
    assert score_range([PLAIN], reward_model) == (1.0, 4.0) and score_range([], reward_model) == (0.0, 1.0)
