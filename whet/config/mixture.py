"""Objectives made of others: weighted sums, and the name `pai` that has to say what it means."""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from whet.config.base import Section
from whet.config.pairwise import ApoDown, ApoZero, Bco, Exo, KtoPair, Nca, OfEach, PlainPairwise, Sigmoid
from whet.config.supervised import Nll


class MixturePart(Section):
    """One term of a mixture."""

    objective: Annotated[PlainPairwise | Nll, Field(discriminator="type")]
    """Any pairwise objective, or `nll`: the chosen response's negative log-likelihood per token."""
    weight: float = Field(1.0, gt=0)
    """Factor of the term."""


class Mixture(Section):
    """Weighted sum of pairwise objectives; by default MPO (Wang et al., 2411.10442): 0.8 sigmoid, 0.2 bco, 1.0 nll."""

    type: Literal["mixture"] = "mixture"
    parts: tuple[MixturePart, ...] = Field(
        (
            MixturePart(objective=Sigmoid(), weight=0.8),
            MixturePart(objective=Bco(beta=0.1), weight=0.2),
            MixturePart(objective=Nll(), weight=1.0),
        ),
        min_length=1,
    )
    """Terms, each with an objective and a weight; the first one's rewards are logged."""


Meaning = Literal["kto_pair", "bco", "exo", "nca", "apo_zero", "apo_down"]


class Pai(Section):
    """A name that some plans carry and no paper or library defines; `means` says which objective to train."""

    type: Literal["pai"] = "pai"
    means: Meaning
    """`pai`: the objective that is meant, with its published setting. There is no default: nobody can know."""
    beta: float | None = Field(None, gt=0)
    """Scale of the implicit reward; null takes that of the objective that is meant."""

    @property
    def meant(self) -> OfEach | Exo:
        """The objective that is trained."""
        objective: OfEach | Exo
        match self.means:
            case "kto_pair":
                objective = KtoPair()
            case "bco":
                objective = Bco()
            case "exo":
                objective = Exo()
            case "nca":
                objective = Nca()
            case "apo_zero":
                objective = ApoZero()
            case "apo_down":
                objective = ApoDown()
        return objective if self.beta is None else objective.model_copy(update={"beta": self.beta})

    @model_validator(mode="before")
    @classmethod
    def _said(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("means") is None:
            choices = ", ".join(get_args(Meaning))
            raise ValueError(f"no paper or library defines `pai`; set `means` to the objective you want: {choices}")
        return data

    @model_validator(mode="after")
    def _warned(self) -> Self:
        warnings.warn(
            f"objective `pai` is no published loss; `means` makes it `{self.means}`: write that as the type instead",
            stacklevel=1,
        )
        return self
