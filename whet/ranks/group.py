"""Several processes of one job, as torchrun starts them: who this one is, and where they meet.

    torchrun --nproc_per_node=4 -m whet run plan.yaml

Rank 0 is the one that keeps the run directory; the others work for it and say nothing but what went wrong.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import IO, TypeVar

from whet.ranks.pulse import waiting

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=30)
"""Ranks finish at different times: who waits for another's share waits as long as it takes."""


class EndedElsewhere(Exception):
    """Another rank has failed and says why; this one has nothing to add."""


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

    def on_main(self, work: Callable[[], T], what: str = "the first rank") -> T:
        """Do it on rank 0 alone; every rank gets what came of it, and goes on when it is done.

        Raises EndedElsewhere on the others where it failed there.
        """
        if self.world == 1:
            return work()
        from torch import distributed

        said: list[tuple[bool, T | None]] = [(False, None)]
        try:
            if self.is_main:
                said = [(True, work())]
        finally:
            with waiting(what):
                distributed.broadcast_object_list(said, src=0)
        went_well, result = said[0]
        if not went_well:
            raise EndedElsewhere
        return result  # type: ignore[return-value]

    def main_first(self, work: Callable[[], T], what: str = "the first rank") -> T:
        """Do it on every rank, on rank 0 before the others: what it keeps on disk they find there."""
        made: list[T] = []
        self.on_main(lambda: made.append(work()), what)
        return made[0] if made else work()

    def wait(self, what: str = "each other") -> None:
        """Hold until every rank is here."""
        if self.world > 1:
            from torch import distributed

            with waiting(what):
                distributed.barrier()


ALONE = Ranks()


@cache
def _silence() -> IO[str]:
    return open(os.devnull, "w", encoding="utf-8")


def among_ranks() -> bool:
    """Whether torchrun, or something that speaks as it does, has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@cache
def join_ranks() -> Ranks:
    """Who this process is by the environment that torchrun gives it. Other ranks than the first fall silent."""
    if not among_ranks():
        return ALONE
    import torch

    ranks = Ranks(rank=int(os.environ["RANK"]), world=int(os.environ["WORLD_SIZE"]))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    # Objects and numbers on CPUs go over the CPUs' network; tensors on GPUs over the GPUs' own.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=LONGEST_WAIT)
    if not ranks.is_main:
        sys.stdout = _silence()
    return ranks
