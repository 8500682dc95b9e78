"""Sharding: which part of weights, gradients and optimiser a rank holds. A class is one way, chosen by `type`.

    launch: {processes: 4, sharding: fsdp}
    launch: {sharding: {type: deepspeed, config: ds_config.json}}
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from whet.config.base import Section, named
from whet.config.values import Place


class NoSharding(Section):
    """Every rank holds the whole model; gradients are added once a step."""

    type: Literal["none"] = "none"


class Fsdp(Section):
    """torch's FSDP2: a rank holds its part of every weight, gradient and running average, and has a layer whole only
    while it computes with it."""

    type: Literal["fsdp"] = "fsdp"
    cpu_offload: bool = False
    """Keep the parts in the host's memory, and take the optimiser's steps there. For GPUs."""


class DeepSpeed(Section):
    """DeepSpeed's ZeRO-2 (gradients and running averages in parts) or ZeRO-3 (weights too)."""

    type: Literal["deepspeed"] = "deepspeed"
    config: Place
    """DeepSpeed's own JSON file. "auto" takes what the plan says; a number or switch that contradicts the plan is
    refused."""


Sharding = Annotated[
    Annotated[NoSharding | Fsdp | DeepSpeed, Field(discriminator="type")], BeforeValidator(named)
]
