"""What is said of a reward model beside its loss: is its confidence deserved, and does it only count words?

A reward model says by s_w - s_l how sure it is: sigma(s_w - s_l) is its probability that w is better (Bradley-Terry).

    confidence   0.5   0.55   0.6  ...  0.95   1      the probability of the response it scores higher
    bins           |  1  |  2  |  ...   | 10  |       pairs, mean confidence, share in which it was right
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whet.data.batch import RankingBatch
from whet.objectives.ranking import RankedScores, ordered_pairs
from whet.schema.packed import Packed

BINS = 10
Floats = NDArray[np.float64]


class Heard(torch.nn.Module):
    """A scorer that keeps what it said, so that a report costs no second forward pass."""

    def __init__(self, scorer: torch.nn.Module) -> None:
        super().__init__()
        self.scorer = scorer
        self.scores: list[Tensor] = []
        """[R] of each batch, in the order in which they were asked for."""

    def forward(self, packed: Packed) -> Tensor:
        scores: Tensor = self.scorer(packed)
        self.scores.append(scores.detach())
        return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """All responses of the held-out rows, and all their ordered pairs."""

    scores: Floats
    """[R]."""
    lengths: Floats
    """[R] tokens of each response."""
    better: NDArray[np.int64]
    worse: NDArray[np.int64]
    """[P] the responses of each pair."""

    @property
    def leads(self) -> Floats:
        """[P] by how much the better response is scored higher."""
        return self.scores[self.better] - self.scores[self.worse]


    @staticmethod
    def joined(parts: Sequence[Judged]) -> Judged:
        """Those of several ranks, numbered through."""
        starts = np.cumsum([0, *(len(part.scores) for part in parts)])
        return Judged(
            scores=np.concatenate([part.scores for part in parts]),
            lengths=np.concatenate([part.lengths for part in parts]),
            better=np.concatenate([start + part.better for start, part in zip(starts, parts, strict=False)]),
            worse=np.concatenate([start + part.worse for start, part in zip(starts, parts, strict=False)]),
        )


def judged(scores: Sequence[Tensor], batches: Sequence[RankingBatch]) -> Judged:
    """Scores, lengths and pairs of several batches, numbered through."""
    nothing = np.zeros(0)
    better, worse, start = [nothing.astype(np.int64)], [nothing.astype(np.int64)], 0
    for said, batch in zip(scores, batches, strict=True):
        pairs = ordered_pairs(RankedScores(scores=said, groups=batch.groups, ranks=batch.ranks))
        better.append(start + pairs[0].cpu().numpy())
        worse.append(start + pairs[1].cpu().numpy())
        start += len(said)
    return Judged(
        scores=np.concatenate([nothing, *(said.double().cpu().numpy() for said in scores)]),
        lengths=np.array([size for batch in batches for tree in batch.packed.trees for size in tree.branches], float),
        better=np.concatenate(better),
        worse=np.concatenate(worse),
    )


def reward_report(parts: Sequence[Judged]) -> dict[str, float]:
    """The scores' range, calibration and the part of length, as `eval/...`; bins as `calibration_50_pairs` and so on.

    `parts` are what each rank has judged.

    `eval/ece` is the expected calibration error (Naeini et al., AAAI 2015): the mean gap between confidence and
    accuracy, bins weighted by their pairs. `eval/brier` is the mean of (1 - sigma(s_w - s_l))^2; 0.25 says nothing.
    `eval/length_correlation` is Spearman's between score and tokens, and `eval/length_accuracy` what would be reached
    by "the longer is better". What is not defined (all scores or lengths equal, no pair) is left out.
    """
    seen = Judged.joined(parts)
    report: dict[str, float] = {}
    if len(seen.scores):
        # Of all batches and ranks together: what the log averages would be a mean of their lowest and highest.
        report |= {"eval/min_reward": float(seen.scores.min()), "eval/max_reward": float(seen.scores.max())}
    if not np.isnan(correlation := spearman(seen.scores, seen.lengths)):
        report["eval/length_correlation"] = correlation
    if not len(seen.better):
        return report
    leads = seen.leads
    longer = seen.lengths[seen.better] - seen.lengths[seen.worse]
    report["eval/length_accuracy"] = float((0.5 + 0.5 * np.sign(longer)).mean())
    report["eval/brier"] = float(np.square(sigmoid(-leads)).mean())
    bins = calibration(leads)
    report["eval/ece"] = sum(b.pairs * abs(b.accuracy - b.confidence) for b in bins) / len(leads)
    for b in bins:
        edge = f"calibration_{100 * b.low:.0f}"
        report |= {f"{edge}_pairs": float(b.pairs), f"{edge}_confidence": b.confidence, f"{edge}_accuracy": b.accuracy}
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Pairs about which the model is similarly sure."""

    low: float
    """Least confidence."""
    pairs: int
    confidence: float
    """Mean."""
    accuracy: float
    """Share in the right order, a tie half."""


def calibration(leads: Floats) -> list[Bin]:
    """Bins of equal width between confidence 0.5 and 1, those without a pair left out.

    The response that is scored higher is taken for the better one, so that the model can be wrong: under the true
    order every outcome would be 1.
    """
    confidence, right = sigmoid(np.abs(leads)), 0.5 + 0.5 * np.sign(leads)
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins = []
    for number in range(BINS):
        here = place == number
        if here.any():
            low = 0.5 + 0.5 * number / BINS
            mean, accuracy = float(confidence[here].mean()), float(right[here].mean())
            bins.append(Bin(low=low, pairs=int(here.sum()), confidence=mean, accuracy=accuracy))
    return bins


def spearman(x: Floats, y: Floats) -> float:
    """Rank correlation, ties sharing their mean rank; NaN where one of the two does not vary."""
    if len(x) < 2 or not np.ptp(x) or not np.ptp(y):
        return float("nan")
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def ranks(values: Floats) -> Floats:
    """
    >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [1.5, 0.0, 1.5]
    """
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[place]


def sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -x))
