"""Preference objectives over pairs that look at each response on its own, not only at their difference.

A loss of h alone is content when both responses grow less likely as long as the rejected one does so faster. These
tie r_w and r_l (log-ratios to the reference, see `pairwise`) to a point of their own. Unit of all: pair, both
responses' terms added. Every docstring says the value where policy and reference agree.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from whet.objectives.loss import Loss, Total
from whet.objectives.pairwise import PairLogprobs, reward_metrics


def nca(pairs: PairLogprobs, *, beta: float) -> Loss:
    """NCA on pairs (Chen et al., 2402.05369); 2 log 2 at the reference.

    -log sigma(beta r_w) - 1/2 log sigma(-beta r_w) - 1/2 log sigma(-beta r_l): the chosen response is data, and both
    responses are noise as well.
    """
    chosen, rejected = beta * pairs.chosen_ratio, beta * pairs.rejected_ratio
    losses = -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)
    return Loss(losses.sum(), reward_metrics(pairs, scale=beta))


def bco(pairs: PairLogprobs, *, beta: float) -> Loss:
    """BCO without its reward shift: -log sigma(beta r_w) - log sigma(-beta r_l); 2 log 2 at the reference."""
    losses = _classified(pairs, beta, shift=pairs.chosen.new_zeros(1))
    return Loss(losses.sum(), reward_metrics(pairs, scale=beta))


def bco_shifted(pairs: PairLogprobs, *, beta: float) -> Loss:
    """BCO (Jung et al., 2404.04656): a classifier of good and bad responses; 2 log 2 at the reference.

    -log sigma(beta r_w - d) - log sigma(d - beta r_l). The shift d is the mean of all rewards beta r of the given
    pairs, which makes their losses depend on one another, and carries no gradient. The paper takes a running mean over
    the steps.
    """
    shift = beta * torch.cat([pairs.chosen_ratio, pairs.rejected_ratio]).detach().mean(0, keepdim=True)
    losses = _classified(pairs, beta, shift)
    return Loss(losses.sum(), {**reward_metrics(pairs, scale=beta), "reward_shift": Total(shift.sum(), 1.0)})


def _classified(pairs: PairLogprobs, beta: float, shift: Tensor) -> Tensor:
    """-log sigma(beta r_w - shift) - log sigma(shift - beta r_l), [P]; `shift` is [1]."""
    return -logsigmoid(beta * pairs.chosen_ratio - shift) - logsigmoid(shift - beta * pairs.rejected_ratio)


def sppo(pairs: PairLogprobs, *, beta: float) -> Loss:
    """SPPO with hard wins (Wu et al., 2405.00675, eq. 4.7 with P = 1 and 0); 1 / (2 beta^2) at the reference.

    (r_w - 1/(2 beta))^2 + (r_l + 1/(2 beta))^2, beta = 1 / eta. The paper's soft form needs the probabilities of a
    preference model.
    """
    target = 0.5 / beta
    losses = (pairs.chosen_ratio - target).square() + (pairs.rejected_ratio + target).square()
    return Loss(losses.sum(), reward_metrics(pairs, scale=beta))


def apo_zero(pairs: PairLogprobs, *, beta: float) -> Loss:
    """APO-zero: 1 - sigma(beta r_w) + sigma(beta r_l) (D'Oosterlinck et al., 2408.06266, eq. 7); 1 at the reference.

    Pulls the chosen response up and the rejected one down: for chosen responses better than the model's own.
    """
    losses = torch.sigmoid(-beta * pairs.chosen_ratio) + torch.sigmoid(beta * pairs.rejected_ratio)
    return Loss(losses.sum(), reward_metrics(pairs, scale=beta))


def apo_down(pairs: PairLogprobs, *, beta: float) -> Loss:
    """APO-down: sigma(beta r_w) + 1 - sigma(beta (r_w - r_l)) (2408.06266, eq. 8); 1 at the reference.

    Pushes both down, the rejected response further: for a model that is better than its chosen responses.
    """
    chosen, rejected = pairs.chosen_ratio, pairs.rejected_ratio
    losses = torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))
    return Loss(losses.sum(), reward_metrics(pairs, scale=beta))


def kto_pair(pairs: PairLogprobs, *, beta: float) -> Loss:
    """KTO on pairs, as TRL offered it up to 0.8; 1 at the reference. It is not KTO: see `unpaired.kto`.

    1 - sigma(beta (r_w - z_l)) + 1 - sigma(beta (z_w - r_l)). In place of KTO's KL stands, for the one half, the mean
    log-ratio of the other half over the given pairs, z = max(0, mean r), which makes their losses depend on one
    another. It carries no gradient, as in KTO; in TRL's code it did.
    """
    chosen, rejected = pairs.chosen_ratio, pairs.rejected_ratio
    chosen_kl, rejected_kl = (ratio.detach().mean().clamp(min=0.0) for ratio in (chosen, rejected))
    losses = torch.sigmoid(-beta * (chosen - rejected_kl)) + torch.sigmoid(-beta * (chosen_kl - rejected))
    metrics = {"kl/chosen": Total(chosen_kl, 1.0), "kl/rejected": Total(rejected_kl, 1.0)}
    return Loss(losses.sum(), {**reward_metrics(pairs, scale=beta), **metrics})
