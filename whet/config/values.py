"""Kinds of value that several sections have, with the bounds within which they work."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

MOST_SEED = 2**63 - 1
"""What every generator of random numbers takes."""
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-3, 100.0
"""Logits are divided by it: below and above these nothing but rounding would be sampled."""
TEMPERATURES = f"must be 0, or from {LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g}"
WORD = r"^[A-Za-z0-9_-]+$"
NO_ZERO_BYTE = r"^[^\x00]*$"


def is_temperature(value: float) -> bool:
    """Whether tokens may be drawn at it; 0 takes the most likely one."""
    return value == 0 or LOWEST_TEMPERATURE <= value <= HIGHEST_TEMPERATURE


def _temperature(value: float) -> float:
    if not is_temperature(value):
        raise ValueError(f"{TEMPERATURES} (found {value:g})")
    return value


Device = Literal["auto", "cpu", "cuda", "mps", "npu", "xpu"]
"""Where a model computes; `auto` is the accelerator that torch finds, else the CPU."""
Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]
Temperature = Annotated[float, Field(ge=0.0), AfterValidator(_temperature)]
"""0 takes the most likely token."""
Place = Annotated[str, Field(min_length=1, pattern=NO_ZERO_BYTE), AfterValidator(os.path.expanduser)]
"""Name of a file, a folder, a model or a function; `~` is the user's home, which no shell replaces inside a plan."""
Word = Annotated[str, Field(max_length=100, pattern=WORD)]
"""Name of a folder whet makes."""
Timeout = Annotated[float, Field(gt=0, le=1_000_000)]
"""Seconds."""
