"""Objectives over single responses that somebody called good or bad. Unit: response.

Symbols: r = log pi(y|x) - log pi_ref(y|x) the log-ratio of a response, summed over its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from whet.objectives.loss import Loss, Total


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingLogprobs:
    """Summed log-probs of N responses under policy and reference, [N] float32, and what was said of them."""

    policy: Tensor
    reference: Tensor
    good: Tensor
    """[N] bool."""
    kl: Tensor
    """Scalar without gradient, z_0 = max(0, mean of r over mismatched pairs): every prompt of the optimiser step with
    the response of another one. It stands for KL(pi || pi_ref) and is the same for the whole step. Objectives that
    need none do not read it."""

    @property
    def ratio(self) -> Tensor:
        return self.policy - self.reference


def kto(ratings: RatingLogprobs, *, beta: float, desirable_weight: float, undesirable_weight: float) -> Loss:
    """KTO (Ethayarajh et al., 2402.01306, eq. 7), lambda - v; half the weight where policy and reference agree.

    Good: lambda_D (1 - sigma(beta (r - z_0))). Bad: lambda_U (1 - sigma(beta (z_0 - r))).
    """
    gain = beta * (ratings.ratio - ratings.kl)
    metrics = {**rating_metrics(ratings, scale=beta, threshold=ratings.kl), "kl": Total(ratings.kl.detach(), 1.0)}
    return Loss(_weighed(ratings, gain, desirable_weight, undesirable_weight), metrics)


def apo_zero_unpaired(
    ratings: RatingLogprobs, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> Loss:
    """APO-zero without pairs (2408.06266, eq. 7): KTO with z_0 = 0, which needs no mismatched pairs."""
    gain = beta * ratings.ratio
    metrics = rating_metrics(ratings, scale=beta, threshold=torch.zeros_like(ratings.kl))
    return Loss(_weighed(ratings, gain, desirable_weight, undesirable_weight), metrics)


def _weighed(ratings: RatingLogprobs, gain: Tensor, desirable: float, undesirable: float) -> Tensor:
    """sum of lambda_D sigma(-gain) over the good and lambda_U sigma(gain) over the bad responses."""
    sign = torch.where(ratings.good, 1.0, -1.0).to(gain)
    weight = torch.where(ratings.good, desirable, undesirable).to(gain)
    return (weight * torch.sigmoid(-sign * gain)).sum()


def rating_metrics(ratings: RatingLogprobs, *, scale: float, threshold: Tensor) -> dict[str, Total]:
    """Mean reward scale * r of the good (`chosen`) and the bad (`rejected`) responses, under the names of pairs.

    `rewards/accuracies` is the share of responses on the right side of the threshold, a tie half.
    """
    with torch.no_grad():
        good = ratings.good
        num_good, num = float(good.sum()), float(good.numel())
        rewards, over = scale * ratings.ratio, torch.sign(ratings.ratio - threshold)
        right = 0.5 + 0.5 * torch.where(good, over, -over)
        return {
            "rewards/chosen": Total(rewards[good].sum(), num_good),
            "rewards/rejected": Total(rewards[~good].sum(), num - num_good),
            "rewards/accuracies": Total(right.sum(), num),
            "logps/chosen": Total(ratings.policy[good].sum(), num_good),
            "logps/rejected": Total(ratings.policy[~good].sum(), num - num_good),
        }
