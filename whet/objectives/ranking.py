"""Reward models: scores of responses to one prompt, ordered (Bradley-Terry). Unit: prompt.

    scores   0.3  -1.0  0.8 | 0.1  0.2
    groups   0     0    0   | 1    1
    ranks    1     3    2   | 1    2       1 is the best
    pairs    (0,1) (0,2) (2,1) | (3,4)     each weighs 1/3 of its prompt; (3,4) is all of its own

A pair is a ranking of two: chosen has rank 1, rejected rank 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from whet.objectives.loss import Loss, Total


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedScores:
    """R scores of responses to any number of prompts; every tensor is [R]."""

    scores: Tensor
    """float32, the model's."""
    groups: Tensor
    """int64, the number of each response's prompt, from 0."""
    ranks: Tensor
    """float, lower is better. Equal ranks make no pair; a prompt where all are equal adds nothing."""
    margins: Tensor | None = None
    """float; the better response of a pair should lead by margins[better] - margins[worse]. Of a preference with the
    margin m: m and 0."""


def bradley_terry(ranked: RankedScores, *, center: float = 0.0) -> Loss:
    """-log sigma(s_w - s_l - m) + center (s_w + s_l)^2, mean over a prompt's pairs, summed over prompts.

    The mean over all C(K,2) pairs of one prompt is InstructGPT's (2203.02155, eq. 1), so that a long ranking counts no
    more than a pair; the margin m is that of Llama 2 (2307.09288, eq. 2); the centring term keeps scores near zero,
    where the first term leaves their level open (Eisenstein et al., 2312.09244, who take center = 0.01).
    Equal scores without margin: log 2 a prompt.
    """
    better, worse = ordered_pairs(ranked)
    chosen, rejected = ranked.scores[better], ranked.scores[worse]
    lead = chosen - rejected
    asked = 0.0 if ranked.margins is None else ranked.margins[better] - ranked.margins[worse]
    losses = -logsigmoid(lead - asked)
    if center:
        losses = losses + center * (chosen + rejected).square()
    prompts = ranked.groups[better]
    return Loss((losses / prompts.bincount()[prompts]).sum(), ranking_metrics(ranked.scores, chosen, rejected))


def ordered_pairs(ranked: RankedScores) -> tuple[Tensor, Tensor]:
    """Indices of the better and the worse response of every pair of one prompt whose ranks differ, each [pairs]."""
    same = ranked.groups[:, None] == ranked.groups[None, :]
    better, worse = torch.nonzero(same & (ranked.ranks[:, None] < ranked.ranks[None, :]), as_tuple=True)
    return better, worse


def ranking_metrics(scores: Tensor, chosen: Tensor, rejected: Tensor) -> dict[str, Total]:
    """Over pairs: share in the right order (a tie half), mean lead, mean scores; over responses: their mean score.

    The lowest and the highest score are no sums: `whet.stages.reward_report` takes them over an evaluation.
    """
    with torch.no_grad():
        scores, chosen, rejected = scores.detach(), chosen.detach(), rejected.detach()
        num = float(chosen.numel())
        wins = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
        return {
            "accuracy": Total(wins.sum(), num),
            "margin": Total((chosen - rejected).sum(), num),
            "rewards/chosen": Total(chosen.sum(), num),
            "rewards/rejected": Total(rejected.sum(), num),
            "mean_reward": Total(scores.sum(), float(scores.numel())),
        }
