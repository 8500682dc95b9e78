"""Sharding: which part of weights, gradients and optimiser a rank holds. A class is one way, chosen by `type`.

    launch: {processes: 4, sharding: none}
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from whet.config.base import Section, named


class NoSharding(Section):
    """Every rank holds the whole model; gradients are added once a step."""

    type: Literal["none"] = "none"


Sharding = Annotated[NoSharding, BeforeValidator(named)]
