"""Launch: where a plan runs. No result depends on it but for rounding, so it is no part of what a stage is made of.

    launch: {processes: 4}              four ranks on this machine, started by `whet run`
    launch: {watchdog: 600}             under torchrun, accelerate or deepspeed, which say how many ranks there are
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from whet.config.base import Section, named
from whet.config.sharding import NoSharding, Sharding


class Local(Section):
    """On this machine, or wherever torchrun and its like have started this process."""

    type: Literal["local"] = "local"
    processes: int = Field(1, ge=1)
    """Ranks that work on a stage together, each with a device of its own where there are GPUs. More than 1 are started
    here, unless torchrun, accelerate or deepspeed has started this process as one of them."""
    sharding: Sharding = NoSharding()
    watchdog: float | None = Field(1800.0, gt=0)
    """Seconds after which a rank that gives no sign of life ends the run, which then says which rank it was and what it
    was doing. null waits for ever."""


Launch = Annotated[Local, BeforeValidator(named)]
