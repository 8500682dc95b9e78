"""Calibration and length of a reward model, on numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from whet.data.batch import RankingBatch, collate_rankings
from whet.data.rendered import RenderedGroup
from whet.stages.reward_report import calibration, judged, reward_report, spearman

LOG3, LOG9 = math.log(3.0), math.log(9.0)
"""Leads at which the model is sure by 3 in 4 and by 9 in 10."""


def batch(*lengths: tuple[int, ...], values: tuple[float, ...] = ()) -> RankingBatch:
    """A row for each tuple of answer lengths; of two, the first is the better."""
    rows = [
        RenderedGroup(prompt_ids=(1, 2), response_ids=tuple((3,) * size for size in sizes), values=values)
        for sizes in lengths
    ]
    return collate_rankings(rows, device=torch.device("cpu"))


def test_calibration_by_hand() -> None:
    """Three leads of log 3, one of them in the wrong order, are sure by 3/4 and right in 2/3; one of log 9 is right."""
    bins = calibration(np.array([LOG3, LOG3, -LOG3, LOG9]))
    assert [(b.pairs, b.low) for b in bins] == [(3, 0.75), (1, 0.9)]
    assert [b.confidence for b in bins] == pytest.approx([0.75, 0.9])
    assert [b.accuracy for b in bins] == pytest.approx([2 / 3, 1.0])


def test_the_edges_have_bins() -> None:
    never, always = calibration(np.array([0.0, 50.0]))
    assert (never.low, never.accuracy, always.low, always.accuracy) == (0.5, 0.5, pytest.approx(0.95), 1.0)


def test_the_report_by_hand() -> None:
    """Brier: 3 in 4 wrong way round is (3/4)^2. Longer: better in one pair, equal in one, shorter in one: 1/2."""
    scores = [torch.tensor([LOG3, 0.0, 0.0, LOG3]), torch.tensor([LOG9, 0.0])]
    report = reward_report([judged(scores, [batch((5, 4), (2, 2)), batch((1, 3))])])
    assert report["eval/brier"] == pytest.approx((0.25**2 + 0.75**2 + 0.1**2) / 3)
    assert report["eval/ece"] == pytest.approx((2 * abs(0.5 - 0.75) + 1 * abs(1.0 - 0.9)) / 3)
    assert report["eval/length_accuracy"] == pytest.approx(0.5)
    assert report["calibration_75_pairs"] == 2 and report["calibration_90_accuracy"] == 1.0


def test_a_ranking_has_all_its_pairs() -> None:
    """Ranks 2, 1, 3 of answers with 4, 6 and 2 tokens: the longer is better in every pair; scores follow length."""
    report = reward_report([judged([torch.tensor([0.1, 0.9, -0.5])], [batch((4, 6, 2), values=(2.0, 1.0, 3.0))])])
    assert report["eval/length_accuracy"] == 1.0 and report["eval/length_correlation"] == pytest.approx(1.0)
    assert sum(value for name, value in report.items() if name.endswith("_pairs")) == 3


def test_batches_do_not_matter() -> None:
    torch.manual_seed(0)
    scores, sizes = torch.randn(12), [(int(a), int(b)) for a, b in torch.randint(1, 9, (6, 2))]
    whole = reward_report([judged([scores], [batch(*sizes)])])
    first, second, third = scores.split([2, 6, 4])
    on_rank_0 = judged([first, second], [batch(*sizes[:1]), batch(*sizes[1:4])])
    parts = reward_report([on_rank_0, judged([third], [batch(*sizes[4:])]), judged([], [])])
    assert whole == pytest.approx(parts)
    assert len(judged([scores], [batch(*sizes)]).better) == 6


def test_the_range_is_that_of_all_scores() -> None:
    """The lowest stands in one batch and the highest in another, on another rank; no mean of either comes out."""
    scores = [torch.tensor([1.0, -4.0]), torch.tensor([0.5, 2.0]), torch.tensor([7.0, 3.0])]
    one = judged(scores[:2], [batch((1, 2)), batch((3, 4))])
    report = reward_report([one, judged(scores[2:], [batch((1, 2))])])
    assert (report["eval/min_reward"], report["eval/max_reward"]) == (-4.0, 7.0)
    assert reward_report([judged([], [])]) == {}


def test_a_model_that_is_as_sure_as_it_is_right_has_no_error() -> None:
    leads = np.concatenate([np.full(3, LOG3), [-LOG3], np.full(9, LOG9), [-LOG9]])
    bins = calibration(leads)
    assert sum(b.pairs * abs(b.accuracy - b.confidence) for b in bins) == pytest.approx(0.0, abs=1e-12)


def test_spearman_by_hand() -> None:
    """Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15) = 0.6; ties share their rank."""
    assert spearman(np.array([1.0, 5.0, 7.0, 30.0]), np.array([2.0, 1.0, 4.0, 3.0])) == pytest.approx(0.6)
    assert spearman(np.array([1.0, 1.0, 2.0]), np.array([3.0, 3.0, 9.0])) == pytest.approx(1.0)


def test_what_is_not_defined_is_left_out() -> None:
    report = reward_report([judged([torch.tensor([0.5, 0.5])], [batch((3, 3))])])
    assert "eval/length_correlation" not in report and report["eval/brier"] == 0.25
    assert reward_report([judged([torch.tensor([0.5, 0.7])], [batch((3, 4), values=(1.0, 1.0))])]).keys() == {
        "eval/min_reward", "eval/max_reward", "eval/length_correlation",
    }  # fmt: skip
