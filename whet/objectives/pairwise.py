"""Preference objectives over pairs of responses to one prompt.

Symbols: y_w the chosen and y_l the rejected response; r = log pi(y|x) - log pi_ref(y|x) its log-ratio, summed over
its tokens; h = r_w - r_l. Every loss is log 2 (sigmoid) or its published constant where policy and reference agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from whet.objectives.loss import Loss, Total


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLogprobs:
    """Summed log-probs of both responses of P pairs, each tensor [P] float32; lengths count the summed tokens."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor

    @property
    def chosen_ratio(self) -> Tensor:
        """r_w = log pi(y_w|x) - log pi_ref(y_w|x)."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """r_l = log pi(y_l|x) - log pi_ref(y_l|x)."""
        return self.rejected - self.reference_rejected


def sigmoid(pairs: PairLogprobs, *, beta: float, label_smoothing: float = 0.0) -> Loss:
    """DPO: -log sigma(beta h) (Rafailov et al., 2305.18290, eq. 7). Unit: pair.

    With label_smoothing e it is the conservative form -(1-e) log sigma(beta h) - e log sigma(-beta h) (Mitchell 2023),
    for labels that are wrong with probability e.
    """
    z = beta * (pairs.chosen_ratio - pairs.rejected_ratio)
    losses = -(1.0 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)
    return Loss(losses.sum(), reward_metrics(pairs, scale=beta))


def ipo_sum(pairs: PairLogprobs, *, tau: float) -> Loss:
    """IPO as printed: (h - 1/(2 tau))^2 with summed log-ratios (Azar et al., 2310.12036, eq. 17). Unit: pair."""
    h = pairs.chosen_ratio - pairs.rejected_ratio
    return Loss((h - 1.0 / (2.0 * tau)).square().sum(), reward_metrics(pairs, scale=tau))


def ipo_length(pairs: PairLogprobs, *, tau: float) -> Loss:
    """IPO with each log-ratio divided by its response's number of tokens, as its authors intend for text. Unit: pair.

    Without the division a long pair's h is a sum of hundreds of terms and the constant target 1/(2 tau) pulls it to
    near zero per token.
    """
    h = pairs.chosen_ratio / pairs.chosen_length - pairs.rejected_ratio / pairs.rejected_length
    return Loss((h - 1.0 / (2.0 * tau)).square().sum(), reward_metrics(pairs, scale=tau))


def reward_metrics(pairs: PairLogprobs, *, scale: float) -> dict[str, Total]:
    """The implicit rewards scale * r under the names TRL's users know; each a total over the pairs."""
    with torch.no_grad():
        chosen, rejected = scale * pairs.chosen_ratio, scale * pairs.rejected_ratio
        num = float(chosen.numel())
        wins = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
        return {
            "rewards/chosen": Total(chosen.sum(), num),
            "rewards/rejected": Total(rejected.sum(), num),
            "rewards/margins": Total((chosen - rejected).sum(), num),
            "rewards/accuracies": Total(wins.sum(), num),
            "logps/chosen": Total(pairs.chosen.sum(), num),
            "logps/rejected": Total(pairs.rejected.sum(), num),
        }
