"""Preference objectives over pairs that look at the difference of the two responses alone.

Symbols: y_w the chosen and y_l the rejected response; r = log pi(y|x) - log pi_ref(y|x) its log-ratio, summed over
its tokens; h = r_w - r_l, or f'(r_w) - f'(r_l) where another divergence than the reverse KL ties the policy to its
reference (`slope`, see `divergence`). Unit of all: pair. Every docstring says the value where policy and reference
agree (h = 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from whet.objectives.divergence import Slope, reverse_kl
from whet.objectives.loss import Loss, Total


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLogprobs:
    """Summed log-probs of both responses of P pairs, each tensor [P] float32; lengths count the summed tokens.

    Objectives without a reference never read `reference_*`; whatever stands there has no effect on them.
    """

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor

    @property
    def num(self) -> int:
        return self.chosen.numel()

    @property
    def chosen_ratio(self) -> Tensor:
        """r_w = log pi(y_w|x) - log pi_ref(y_w|x)."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """r_l = log pi(y_l|x) - log pi_ref(y_l|x)."""
        return self.rejected - self.reference_rejected

    @property
    def chosen_mean(self) -> Tensor:
        """Mean log-prob of the chosen response's tokens."""
        return self.chosen / self.chosen_length

    @property
    def rejected_mean(self) -> Tensor:
        """Mean log-prob of the rejected response's tokens."""
        return self.rejected / self.rejected_length

    @property
    def mean_ratio_difference(self) -> Tensor:
        """h with each log-ratio divided by its response's number of tokens."""
        return self.chosen_ratio / self.chosen_length - self.rejected_ratio / self.rejected_length


def difference(pairs: PairLogprobs, slope: Slope) -> Tensor:
    """h = f'(u_w) - f'(u_l), [P]."""
    return slope(pairs.chosen_ratio) - slope(pairs.rejected_ratio)


def logistic(z: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-(1-e) log sigma(z) - e log sigma(-z) of each z, for labels wrong with probability e (Mitchell 2023)."""
    if label_smoothing == 0.0:
        return -logsigmoid(z)
    return -(1.0 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)


def sigmoid(pairs: PairLogprobs, *, beta: float, label_smoothing: float = 0.0, slope: Slope = reverse_kl) -> Loss:
    """DPO: -log sigma(beta h) (Rafailov et al., 2305.18290, eq. 7); log 2 at h = 0.

    With label_smoothing e it is conservative DPO, -(1-e) log sigma(beta h) - e log sigma(-beta h).
    """
    losses = logistic(beta * difference(pairs, slope), label_smoothing)
    return Loss(losses.sum(), reward_metrics(pairs, scale=beta))


def robust(pairs: PairLogprobs, *, beta: float, label_smoothing: float, slope: Slope = reverse_kl) -> Loss:
    """Robust DPO (Chowdhury et al., 2403.00409); log 2 at h = 0.

    [(1-e) l(h) - e l(-h)] / (1-2e) with l(h) = -log sigma(beta h): its mean over labels flipped with probability e is
    the DPO loss of the true ones. It has no lower bound.
    """
    z = beta * difference(pairs, slope)
    e = label_smoothing
    losses = (e * logsigmoid(-z) - (1.0 - e) * logsigmoid(z)) / (1.0 - 2.0 * e)
    return Loss(losses.sum(), reward_metrics(pairs, scale=beta))


def hinge(pairs: PairLogprobs, *, beta: float, slope: Slope = reverse_kl) -> Loss:
    """max(0, 1 - beta h): SLiC's hinge (2305.10425) on log-ratios, RSO's hinge-norm (2309.06657); 1 at h = 0."""
    losses = torch.relu(1.0 - beta * difference(pairs, slope))
    return Loss(losses.sum(), reward_metrics(pairs, scale=beta))


def ipo_sum(pairs: PairLogprobs, *, tau: float) -> Loss:
    """IPO as printed: (h - 1/(2 tau))^2 with summed log-ratios (Azar et al., 2310.12036, eq. 17)."""
    h = difference(pairs, reverse_kl)
    return Loss((h - 1.0 / (2.0 * tau)).square().sum(), reward_metrics(pairs, scale=tau))


def ipo_length(pairs: PairLogprobs, *, tau: float) -> Loss:
    """IPO with each log-ratio divided by its response's number of tokens, as its authors intend for text.

    Without the division a long pair's h is a sum of hundreds of terms and the constant target 1/(2 tau) pulls it to
    near zero per token.
    """
    h = pairs.mean_ratio_difference
    return Loss((h - 1.0 / (2.0 * tau)).square().sum(), reward_metrics(pairs, scale=tau))


def exo(pairs: PairLogprobs, *, beta: float, label_smoothing: float, slope: Slope = reverse_kl) -> Loss:
    """EXO on pairs, the reverse KL(q || p) (Ji et al., 2402.00856, eq. 16) with q = sigma(beta h), p = 1 - e.

    q (log q - log(1-e)) + (1-q) (log(1-q) - log e). Smallest, 0, where q = 1 - e, so e must be above zero;
    -log 2 - [log(1-e) + log e] / 2 at h = 0.
    """
    z = beta * difference(pairs, slope)
    won = torch.sigmoid(z) * (logsigmoid(z) - math.log1p(-label_smoothing))
    lost = torch.sigmoid(-z) * (logsigmoid(-z) - math.log(label_smoothing))
    return Loss((won + lost).sum(), reward_metrics(pairs, scale=beta))


def discopop(pairs: PairLogprobs, *, beta: float, tau: float, slope: Slope = reverse_kl) -> Loss:
    """DiscoPOP, the log-ratio modulated loss (Lu et al., 2406.08414, eq. 5); (log 2 + 1) / 2 at h = 0.

    With z = beta h and m = sigma(z / tau): (1 - m)(-log sigma(z)) + m e^-z, the logistic loss of pairs in the wrong
    order and the exponential loss of those in the right one.
    """
    z = beta * difference(pairs, slope)
    modulation = torch.sigmoid(z / tau)
    # Where the exponential could overflow its weight is zero, and 0 * inf would be NaN.
    exponential = torch.exp((-z).clamp(max=80.0))
    losses = torch.sigmoid(-z / tau) * -logsigmoid(z) + modulation * exponential
    return Loss(losses.sum(), reward_metrics(pairs, scale=beta))


def sigmoid_norm(pairs: PairLogprobs, *, beta: float, label_smoothing: float = 0.0) -> Loss:
    """Length-normalised DPO (Tulu 3, 2411.15124): each log-ratio divided by its tokens; log 2 at h = 0."""
    losses = logistic(beta * pairs.mean_ratio_difference, label_smoothing)
    return Loss(losses.sum(), reward_metrics(pairs, scale=beta))


def reward_metrics(pairs: PairLogprobs, *, scale: float) -> dict[str, Total]:
    """The implicit rewards scale * r under the names TRL's users know; each a total over the pairs.

    Summed log-ratios for every objective with a reference, also for those that divide by the length: one quantity to
    compare them by.
    """
    return preference_metrics(pairs, scale * pairs.chosen_ratio, scale * pairs.rejected_ratio)


def preference_metrics(pairs: PairLogprobs, chosen: Tensor, rejected: Tensor) -> dict[str, Total]:
    """Metrics of any rewards [P] of both responses. A tie counts half."""
    with torch.no_grad():
        chosen, rejected = chosen.detach(), rejected.detach()
        num = float(pairs.num)
        wins = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
        return {
            "rewards/chosen": Total(chosen.sum(), num),
            "rewards/rejected": Total(rejected.sum(), num),
            "rewards/margins": Total((chosen - rejected).sum(), num),
            "rewards/accuracies": Total(wins.sum(), num),
            "logps/chosen": Total(pairs.chosen.detach().sum(), num),
            "logps/rejected": Total(pairs.rejected.detach().sum(), num),
        }
