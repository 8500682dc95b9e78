"""Objectives by the rows they read: a class is an algorithm by name, its defaults the published setting.

Supervised ones stand in `supervised`, those over pairs in `pairwise` and `mixture`, the rest here.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from whet.config.base import Section
from whet.config.mixture import Mixture, Pai
from whet.config.pairwise import PlainPairwise
from whet.config.supervised import Dft, Nll


class _Rated(Section):
    beta: float = Field(0.1, gt=0)
    """Scale of the implicit reward: the larger, the closer the policy stays to the reference."""
    desirable_weight: float = Field(1.0, ge=0.0)
    """Weight of good responses; raise it where they are the fewer."""
    undesirable_weight: float = Field(1.0, ge=0.0)
    """Weight of bad responses; raise it where they are the fewer."""


class Kto(_Rated):
    """KTO (Ethayarajh et al., 2402.01306, eq. 7): single responses called good or bad, against the policy's KL."""

    type: Literal["kto"] = "kto"


class ApoZeroUnpaired(_Rated):
    """APO-zero without pairs (D'Oosterlinck et al., 2408.06266, eq. 7): good responses up, bad ones down."""

    type: Literal["apo_zero_unpaired"] = "apo_zero_unpaired"


Margin = Literal["none", "column", "scores"]
"""Where the lead comes from that a reward model is asked for."""


class BradleyTerry(Section):
    """Reward model (InstructGPT, 2203.02155, eq. 1): -log sigmoid(better - worse), mean over the pairs of a prompt."""

    type: Literal["bradley_terry"] = "bradley_terry"
    margin: Margin = "column"
    """The lead asked for (Llama 2, 2307.09288, eq. 2): `column` takes a row's `margin`; `scores` that, else
    `chosen_score - rejected_score` in the scorer's own unit; `none` asks for none. Rows without one have none."""
    center: float = Field(0.0, ge=0.0)
    """Weight of (better + worse)^2, which keeps scores near zero (2312.09244: 0.01)."""


class _Stored(Section):
    normalise: Literal["sum", "length"] = "sum"
    """`sum` takes a response's log-prob as it is; `length` divides it by its number of tokens."""
    kl_weight: float = Field(0.0, ge=0.0)
    """Weight of a penalty for leaving the reference on the stored responses (k3 of the mean token)."""


class RewardWeighted(_Stored):
    """REINFORCE on stored rewards, which some pipelines call GRPO: -(reward - baseline) * log-prob of the response."""

    type: Literal["reward_weighted"] = "reward_weighted"
    baseline: Literal["dataset", "group", "none"] = "dataset"
    """What is taken off a reward: the mean of all, the mean of its prompt's responses, or nothing."""
    divide_by_std: bool = False
    """Divide by the standard deviation of the same rewards; not with baseline `none`."""

    @model_validator(mode="after")
    def _has_baseline(self) -> Self:
        if self.divide_by_std and self.baseline == "none":
            raise ValueError("divide_by_std needs a baseline: choose baseline=dataset or baseline=group")
        return self


class SoftPreference(_Stored):
    """Likelihood of all responses to a prompt, each by its share; some pipelines call it GSPO."""

    type: Literal["soft_preference"] = "soft_preference"
    temperature: float = Field(1.0, gt=0)
    """Shares are softmax(reward / temperature); stored weights are raised to 1 / temperature, so 1 keeps them."""


SupervisedObjective = Annotated[Nll | Dft, Field(discriminator="type")]
PairwiseObjective = Annotated[PlainPairwise | Mixture | Pai, Field(discriminator="type")]
UnpairedObjective = Annotated[Kto | ApoZeroUnpaired, Field(discriminator="type")]
RankingObjective = BradleyTerry
WeightedObjective = Annotated[RewardWeighted | SoftPreference, Field(discriminator="type")]
