"""Sums of objectives over the same pairs. A sum of losses with one unit keeps that unit: pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from whet.objectives.loss import Loss, Total
from whet.objectives.pairwise import PairLogprobs
from whet.objectives.reference_free import chosen_nll

PairFormula = Callable[[PairLogprobs], Loss]


@dataclass(frozen=True, slots=True)
class Part:
    """One term of a mixture; its loss is logged as loss/NAME, before the weight."""

    name: str
    weight: float
    formula: PairFormula


def mixture(pairs: PairLogprobs, *, parts: Sequence[Part]) -> Loss:
    """sum_k w_k L_k, as in MPO (Wang et al., 2411.10442). Of metrics that several parts have, the first part's stay."""
    total = torch.zeros_like(pairs.chosen.sum())
    metrics: dict[str, Total] = {}
    for part in parts:
        loss = part.formula(pairs)
        total = total + part.weight * loss.total
        metrics[f"loss/{part.name}"] = Total(loss.total.detach(), float(pairs.num))
        metrics = {**loss.metrics, **metrics}
    return Loss(total, metrics)


def with_nll(pairs: PairLogprobs, *, formula: PairFormula, weight: float) -> Loss:
    """L + alpha NLL(y_w) / |y_w|, the second term of iterative RPO (Pang et al., 2404.19733)."""
    loss, nll = formula(pairs), chosen_nll(pairs)
    return Loss(loss.total + weight * nll.total, {**loss.metrics, **nll.metrics})
