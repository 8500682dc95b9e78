"""The value function of PPO: where it comes from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from whet.config.base import Section
from whet.config.values import Place


class PolicyValue(Section):
    """A head on the policy's own layers: one pass gives log-probs and values, and both losses train the layers."""

    type: Literal["policy"] = "policy"
    layers: int = Field(1, ge=1)
    """1 is a linear layer; more put hidden layers of the model's width with a tanh in front of it."""


class ModelValue(Section):
    """A model of its own beside the policy. What of it trains, an adapter or all weights, is as in the policy."""

    type: Literal["model"] = "model"
    model: Place = "start"
    """`start` (the model this stage starts from), `base`, a stage name, or a checkpoint. A reward model goes on with
    its score for a value (InstructGPT, 2203.02155, appendix C.4); any other starts with values of 0."""
    learning_rate: float | None = Field(None, gt=0.0)
    """The highest, over the same warm-up and schedule; null is `train.learning_rate`. The model is clipped by its own
    gradient's norm."""


ValueFunction = Annotated[PolicyValue | ModelValue, Field(discriminator="type")]
