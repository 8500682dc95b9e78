"""Config to formula: the one place where an objective's name becomes a function, with its unit beside it.

objective   formula               unit (what the sum is divided by)
nll         supervised.nll        trained token
sigmoid     pairwise.sigmoid      pair
ipo         pairwise.ipo_*        pair
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from whet.config.objective import Ipo, Nll, Sigmoid
from whet.objectives import pairwise, supervised
from whet.objectives.loss import Loss


def supervised_formula(objective: Nll) -> Callable[[Tensor, Tensor], Loss]:
    match objective:
        case Nll():
            return supervised.nll


def pairwise_formula(objective: Sigmoid | Ipo) -> Callable[[pairwise.PairLogprobs], Loss]:
    match objective:
        case Sigmoid(beta=beta, label_smoothing=smoothing):
            return partial(pairwise.sigmoid, beta=beta, label_smoothing=smoothing)
        case Ipo(tau=tau, normalise="length"):
            return partial(pairwise.ipo_length, tau=tau)
        case Ipo(tau=tau):
            return partial(pairwise.ipo_sum, tau=tau)
