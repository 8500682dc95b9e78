"""Bradley-Terry on pairs and rankings by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.objectives.pairs import means, softplus
from whet.objectives.ranking import RankedScores, bradley_terry, ordered_pairs


def ranked(
    scores: list[float], groups: list[int], ranks: list[float], margins: list[float] | None = None
) -> RankedScores:
    return RankedScores(
        scores=torch.tensor(scores, dtype=torch.float64, requires_grad=True),
        groups=torch.tensor(groups),
        ranks=torch.tensor(ranks, dtype=torch.float64),
        margins=None if margins is None else torch.tensor(margins, dtype=torch.float64),
    )


def test_a_pair_is_a_ranking_of_two() -> None:
    # -log sigma(0.8 - 0.3) and -log sigma(-1 - 0.5)
    rows = ranked([0.8, 0.3, -1.0, 0.5], [0, 0, 1, 1], [1, 2, 1, 2])
    loss = bradley_terry(rows)
    assert loss.total.item() == pytest.approx(softplus(-0.5) + softplus(1.5), abs=1e-12)
    assert means(loss)["accuracy"] == 0.5
    assert means(loss)["margin"] == pytest.approx((0.5 - 1.5) / 2)


def test_a_ranking_is_the_mean_of_its_pairs() -> None:
    # scores 0.3, -1, 0.8 with ranks 1, 3, 2: pairs (0,1), (0,2), (2,1), each a third; the second prompt is one pair
    rows = ranked([0.3, -1.0, 0.8, 0.1, 0.2], [0, 0, 0, 1, 1], [1, 3, 2, 1, 2])
    expected = (softplus(-1.3) + softplus(0.5) + softplus(-1.8)) / 3 + softplus(0.1)
    assert bradley_terry(rows).total.item() == pytest.approx(expected, abs=1e-12)


def test_ties_make_no_pair() -> None:
    # ranks 1, 2, 2: two pairs, each one half
    rows = ranked([0.3, -1.0, 0.8], [0, 0, 0], [1, 2, 2])
    assert [index.tolist() for index in ordered_pairs(rows)] == [[0, 0], [1, 2]]
    assert bradley_terry(rows).total.item() == pytest.approx((softplus(-1.3) + softplus(0.5)) / 2, abs=1e-12)


def test_a_prompt_of_ties_adds_nothing() -> None:
    rows = ranked([0.3, -1.0, 0.8, 0.1], [0, 0, 1, 1], [1, 1, 1, 2])
    assert bradley_terry(rows, center=0.1).total.item() == pytest.approx(softplus(-0.7) + 0.1 * 0.81, abs=1e-12)
    alone = ranked([0.3, -1.0], [0, 0], [1, 1])
    loss = bradley_terry(alone, center=0.1)
    loss.total.backward()
    assert loss.total.item() == 0.0
    assert alone.scores.grad is not None and alone.scores.grad.tolist() == [0.0, 0.0]


def test_margin_asks_for_a_lead() -> None:
    # Llama 2: -log sigma(0.5 - 0.2), and -log sigma(-1.5 - 0)
    rows = ranked([0.8, 0.3, -1.0, 0.5], [0, 0, 1, 1], [1, 2, 1, 2], margins=[0.2, 0.0, 0.0, 0.0])
    assert bradley_terry(rows).total.item() == pytest.approx(softplus(-0.3) + softplus(1.5), abs=1e-12)
    assert bradley_terry(replace(rows, margins=None)).total.item() == pytest.approx(
        softplus(-0.5) + softplus(1.5), abs=1e-12
    )


def test_centring_pulls_the_level_to_zero() -> None:
    # + 0.01 ((0.8 + 0.3)^2 + (-1 + 0.5)^2) = 0.01 (1.21 + 0.25)
    rows = ranked([0.8, 0.3, -1.0, 0.5], [0, 0, 1, 1], [1, 2, 1, 2])
    expected = softplus(-0.5) + softplus(1.5) + 0.0146
    assert bradley_terry(rows, center=0.01).total.item() == pytest.approx(expected, abs=1e-12)


def test_only_centring_sees_the_level() -> None:
    rows, raised = (ranked([a, b], [0, 0], [1, 2]) for a, b in ((0.8, 0.3), (5.8, 5.3)))
    assert bradley_terry(rows).total.item() == pytest.approx(bradley_terry(raised).total.item(), abs=1e-12)
    assert bradley_terry(rows, center=0.01).total.item() < bradley_terry(raised, center=0.01).total.item()


def test_equal_scores_are_log_two_a_prompt() -> None:
    rows = ranked([0.0] * 5, [0, 0, 0, 1, 1], [1, 3, 2, 1, 2])
    assert bradley_terry(rows).total.item() == pytest.approx(2 * math.log(2), abs=1e-12)


def test_order_of_responses_does_not_matter() -> None:
    rows = ranked([0.3, -1.0, 0.8, 0.1, 0.2], [0, 0, 0, 1, 1], [1, 3, 2, 1, 2])
    turned = ranked([0.2, 0.8, 0.1, 0.3, -1.0], [1, 0, 1, 0, 0], [2, 2, 1, 1, 3])
    assert bradley_terry(turned).total.item() == pytest.approx(bradley_terry(rows).total.item(), abs=1e-12)


def test_metrics() -> None:
    found = means(bradley_terry(ranked([0.3, -1.0, 0.8, 0.1, 0.2], [0, 0, 0, 1, 1], [1, 3, 2, 1, 2])))
    # pairs 0.3 > -1, 0.3 < 0.8, 0.8 > -1, 0.1 < 0.2
    assert found["accuracy"] == pytest.approx(0.5)
    assert found["margin"] == pytest.approx((1.3 - 0.5 + 1.8 - 0.1) / 4)
    assert found["rewards/chosen"] == pytest.approx((0.3 + 0.3 + 0.8 + 0.1) / 4)
    assert found["rewards/rejected"] == pytest.approx((-1.0 + 0.8 - 1.0 + 0.2) / 4)
    assert found["mean_reward"] == pytest.approx(0.08)
    # The loop adds up what it is given: a lowest and a highest score would be averaged over micro-batches.
    assert not {"min_reward", "max_reward"} & found.keys()
