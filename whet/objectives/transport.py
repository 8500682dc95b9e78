"""Alignment by optimal transport (AOT, Melnyk et al., 2406.05882): distributions are compared, not pairs.

Both sides are sorted and compared quantile by quantile, so that the one distribution comes to lie above the other
(first-order stochastic dominance). The losses of the given pairs depend on one another. Unit: pair.
"""

from __future__ import annotations

from whet.objectives.loss import Loss
from whet.objectives.pairwise import PairLogprobs, logistic, reward_metrics


def aot(pairs: PairLogprobs, *, beta: float, label_smoothing: float = 0.0) -> Loss:
    """Paired form: the policy's margins log pi(y_w|x) - log pi(y_l|x) against the reference's, both sorted.

    sum_i -log sigma(beta (m_(i) - m_ref(i))); log 2 a pair where policy and reference agree.
    """
    margins = (pairs.chosen - pairs.rejected).sort().values
    reference = (pairs.reference_chosen - pairs.reference_rejected).sort().values
    losses = logistic(beta * (margins - reference), label_smoothing)
    return Loss(losses.sum(), reward_metrics(pairs, scale=beta))


def aot_unpaired(pairs: PairLogprobs, *, beta: float, label_smoothing: float = 0.0) -> Loss:
    """Unpaired form: the log-ratios of all chosen responses against those of all rejected ones, both sorted.

    sum_i -log sigma(beta (r_w(i) - r_l(i))); log 2 a pair where policy and reference agree.
    """
    chosen, rejected = pairs.chosen_ratio.sort().values, pairs.rejected_ratio.sort().values
    losses = logistic(beta * (chosen - rejected), label_smoothing)
    return Loss(losses.sum(), reward_metrics(pairs, scale=beta))
