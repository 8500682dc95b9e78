"""Preference objectives over pairs without a reference: the reward is the policy's own log-likelihood. Unit: pair."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from whet.objectives.loss import Loss, Total
from whet.objectives.pairwise import PairLogprobs, logistic, preference_metrics


def simpo(pairs: PairLogprobs, *, beta: float, gamma: float, label_smoothing: float = 0.0) -> Loss:
    """SimPO: -log sigma(beta (log pi(y_w|x)/|y_w| - log pi(y_l|x)/|y_l|) - gamma) (Meng et al., 2405.14734)."""
    chosen, rejected = beta * pairs.chosen_mean, beta * pairs.rejected_mean
    losses = logistic(chosen - rejected - gamma, label_smoothing)
    return Loss(losses.sum(), preference_metrics(pairs, chosen, rejected))


def cpo(pairs: PairLogprobs, *, beta: float, label_smoothing: float = 0.0) -> Loss:
    """CPO's preference term: -log sigma(beta (log pi(y_w|x) - log pi(y_l|x))) (Xu et al., 2401.08417, eq. 3).

    Its likelihood term is `chosen_nll`, added with the weight `nll_weight`.
    """
    chosen, rejected = beta * pairs.chosen, beta * pairs.rejected
    return Loss(logistic(chosen - rejected, label_smoothing).sum(), preference_metrics(pairs, chosen, rejected))


def orpo(pairs: PairLogprobs, *, odds_weight: float) -> Loss:
    """ORPO's odds-ratio term: -lambda log sigma(log odds(y_w|x) - log odds(y_l|x)) (Hong et al., 2403.07691, eq. 7).

    odds = P / (1 - P), where log P is the mean log-prob of a response's tokens. Its likelihood term is `chosen_nll`,
    added with the weight `nll_weight`.
    """
    log_odds = _log_odds(pairs.chosen_mean) - _log_odds(pairs.rejected_mean)
    log_ratio = logsigmoid(log_odds)
    metrics = preference_metrics(pairs, odds_weight * pairs.chosen_mean, odds_weight * pairs.rejected_mean)
    num = float(pairs.num)
    metrics["log_odds_ratio"] = Total(log_ratio.detach().sum(), num)
    metrics["log_odds_chosen"] = Total(log_odds.detach().sum(), num)
    return Loss(-odds_weight * log_ratio.sum(), metrics)


def _log_odds(mean: Tensor) -> Tensor:
    """log(P / (1 - P)) of log P."""
    # A response known by heart has log P = 0 and infinite odds.
    mean = mean.clamp(max=-1e-7)
    return mean - torch.log(-torch.expm1(mean))


def chosen_nll(pairs: PairLogprobs) -> Loss:
    """-log pi(y_w|x) / |y_w|, the likelihood term of iterative RPO, MPO, ORPO and CPO; response tokens only.

    Averaged over each response's own tokens: a long response counts as much as a short one, and the term does not
    depend on how pairs are grouped into batches.
    """
    total = -pairs.chosen_mean.sum()
    return Loss(total, {"nll_loss": Total(total.detach(), float(pairs.num))})
