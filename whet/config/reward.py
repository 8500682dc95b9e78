"""The head of a reward model."""

from __future__ import annotations

from pydantic import Field

from whet.config.base import Section


class RewardHead(Section):
    """What reads a score off the last token's hidden state."""

    layers: int = Field(1, ge=1)
    """1 is the ordinary linear layer; more put hidden layers of the model's width with a tanh in front of it."""
    freeze_backbone: bool = False
    """Train the head alone."""
