"""What all sections of a plan share: frozen, strict about names, documented where the field stands."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Device = Literal["auto", "cpu", "cuda", "mps", "npu", "xpu"]
"""Where a model computes; `auto` is the accelerator that torch finds, else the CPU."""


class Section(BaseModel):
    """A part of a plan. The text under a field is its documentation: `whet explain` prints it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def named(value: object) -> object:
    """A bare word stands for the section of that `type` with its defaults: for unions that are chosen by it."""
    return {"type": value} if isinstance(value, str) else value
