"""Launch: where a plan runs. No result depends on it but for rounding, so it is no part of what a stage is made of.

    launch: {processes: 4}              four ranks on this machine, started by `whet run`
    launch: {watchdog: 600}             under torchrun, accelerate or deepspeed, which say how many ranks there are
    launch: {type: ray, processes: 8, address: auto}      eight ranks on a Ray cluster
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from whet.config.base import Section, named
from whet.config.sharding import NoSharding, Sharding
from whet.config.values import Timeout


class _Ranks(Section):
    sharding: Sharding = NoSharding()
    watchdog: Timeout | None = 1800.0
    """Seconds after which a rank that gives no sign of life ends the run, which then says which rank it was and what it
    was doing. null waits for ever."""


class Local(_Ranks):
    """On this machine, or wherever torchrun and its like have started this process."""

    type: Literal["local"] = "local"
    processes: int = Field(1, ge=1)
    """Ranks that work on a stage together, each with a device of its own where there are GPUs. More than 1 are started
    here, unless torchrun, accelerate or deepspeed has started this process as one of them."""


class Ray(_Ranks):
    """On a Ray cluster, as a job of Ray Train. The run directory is on storage that all its nodes share."""

    type: Literal["ray"] = "ray"
    processes: int = Field(1, ge=1)
    """Ranks that work on a stage together, each a worker of the cluster."""
    address: str | None = None
    """Cluster to join: `auto` is the one this machine belongs to, else host:port; null starts one on this machine that
    ends with the run."""
    cpus_per_process: float = Field(1.0, gt=0)
    """CPUs that a rank reserves."""
    gpus_per_process: float | None = Field(None, ge=0)
    """GPUs that a rank reserves; null takes one where the cluster has any and `model.device` does not say otherwise.
    With 0 a rank sees no GPU."""
    placement: Literal["pack", "spread"] = "pack"
    """`pack` puts the ranks on as few nodes as possible, `spread` on as many."""
    max_failures: int = Field(3, ge=0)
    """How often the ranks are started again when one of them is lost; they go on from the last checkpoint. Nodes that a
    provider takes back do not count."""
    start_timeout: Timeout = 600.0
    """Seconds to wait for room on the cluster."""


def _local_unless_said(value: object) -> object:
    """`launch.processes=4` alone is this machine's."""
    section = named(value)
    return {"type": "local", **section} if isinstance(section, dict) and "type" not in section else section


Launch = Annotated[
    Annotated[Local | Ray, Field(discriminator="type")],
    BeforeValidator(_local_unless_said),
]
