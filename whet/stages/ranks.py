"""Several processes of one job, as torchrun starts them: who this one is, and where they meet.

    torchrun --nproc_per_node=4 -m whet reject plan.yaml

Rank 0 is the one that keeps the run directory; the others work for it and say nothing but what went wrong. A rank that
fails ends, and torchrun ends the others.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import IO, TypeVar

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=30)
"""Ranks finish at different times: who waits for another's share waits as long as it takes."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `world` of them."""

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def stream(self) -> IO[str] | None:
        """Where progress is shown: standard error on rank 0 (None), nowhere on the others."""
        return None if self.is_main else _silence()

    def title(self, name: str) -> str:
        """What a progress line is called: the first rank's stands for its share alone."""
        return name if self.world == 1 else f"{name} (1 of {self.world} shares)"

    def on_main(self, work: Callable[[], T]) -> T:
        """Do it on rank 0 alone; every rank gets what came of it, and goes on when it is done."""
        if self.world == 1:
            return work()
        from torch import distributed

        said = [work() if self.is_main else None]
        distributed.broadcast_object_list(said, src=0)
        return said[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Hold until every rank is here."""
        if self.world > 1:
            from torch import distributed

            distributed.barrier()


ALONE = Ranks()


@cache
def _silence() -> IO[str]:
    return open(os.devnull, "w", encoding="utf-8")


@cache
def join_ranks() -> Ranks:
    """Who this process is by the environment that torchrun gives it. Other ranks than the first fall silent."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        return ALONE
    import torch

    ranks = Ranks(rank=int(os.environ["RANK"]), world=world)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    # Objects go over the network of the CPUs, whatever the devices are.
    torch.distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    if not ranks.is_main:
        sys.stdout = _silence()
    return ranks
