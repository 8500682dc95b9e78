"""Objectives: a class is an algorithm by name, its defaults are the published setting."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from whet.config.base import Section


class Nll(Section):
    """Negative log-likelihood of the assistant tokens, averaged over tokens."""

    type: Literal["nll"] = "nll"


class Sigmoid(Section):
    """DPO (Rafailov et al., 2305.18290, eq. 7): -log sigmoid(beta * h), h the log-ratio of chosen minus rejected."""

    type: Literal["sigmoid"] = "sigmoid"
    beta: float = Field(0.1, gt=0)
    """Strength of the pull to the reference."""
    label_smoothing: float = Field(0.0, ge=0.0, lt=0.5)
    """Chance that a label is wrong (conservative DPO, Mitchell 2023)."""


class Ipo(Section):
    """IPO (Azar et al., 2310.12036, eq. 17): (h - 1/(2 tau))^2."""

    type: Literal["ipo"] = "ipo"
    tau: float = Field(0.1, gt=0)
    """Regularisation; the target of h is 1/(2 tau)."""
    normalise: Literal["length", "sum"] = "length"
    """`length` divides each response's log-ratio by its number of tokens (the authors' intention for language
    models); `sum` is the equation as printed."""


SupervisedObjective = Nll
PairwiseObjective = Annotated[Sigmoid | Ipo, Field(discriminator="type")]
