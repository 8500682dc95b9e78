"""Several processes of one job, as torchrun starts them: who this one is, and where they meet.

    torchrun --nproc_per_node=4 -m whet run plan.yaml

Rank 0 is the one that keeps the run directory; the others work for it and say nothing but what went wrong.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import IO, TypeVar, cast

from whet.errors import UserError
from whet.ranks.life import Signs
from whet.ranks.pulse import waiting
from whet.ranks.watchdog import FAILED, Watchdog

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=30)
"""Ranks finish at different times: who waits for another's share waits as long as it takes. A rank that hangs is the
watchdog's."""


class Ended(Exception):
    """A rank has failed, and the user has been told why: nothing is left to say."""

    def __init__(self, code: int = FAILED) -> None:
        self.code = code
        super().__init__(f"exit code {code}")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `world` of them, `local_world` of them on this machine (1 where nobody says)."""

    rank: int = 0
    world: int = 1
    local_world: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def stream(self) -> IO[str] | None:
        """Where progress is shown: standard error on rank 0 (None), nowhere on the others."""
        return None if self.is_main else _silence()

    def share(self, whole: Sequence[T]) -> Sequence[T]:
        """What this rank does of it: every `world`-th, so that each gets as many, give or take one."""
        return whole[self.rank :: self.world]

    def title(self, name: str) -> str:
        """What a progress line is called: the first rank's stands for its share alone."""
        return name if self.world == 1 else f"{name} (1 of {self.world} shares)"

    def on_main(self, work: Callable[[], T], what: str = "the first rank") -> T:
        """Do it on rank 0 alone; every rank gets what came of it, and goes on when it is done.

        Raises Ended on the others where it failed there.
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
            raise Ended
        return cast(T, result)

    def everyone(self, value: T, what: str = "what the others found") -> list[T]:
        """The value of every rank, in their order."""
        if self.world == 1:
            return [value]
        from torch import distributed

        parts: list[T | None] = [None] * self.world
        with waiting(what):
            distributed.all_gather_object(parts, value)
        return cast(list[T], parts)

    def main_first(self, work: Callable[[], T], what: str = "the first rank") -> T:
        """Do it on every rank, on rank 0 before the others: what it keeps on disk they find there."""
        made: list[T] = []
        self.on_main(lambda: made.append(work()), what)
        return made[0] if made else work()

    def in_turn(self, work: Callable[[], T], what: str = "its turn") -> T:
        """Do it on every rank, on those of a machine one after the other."""
        turns = max(self.everyone(self.local_world, what))
        made: list[T] = []
        for turn in range(turns):
            if turn == self.rank % self.local_world:
                made.append(work())
            if turns > 1:
                self.wait(what)
        return made[0]

    def wait(self, what: str = "each other") -> None:
        """Hold until every rank is here."""
        if self.world > 1:
            from torch import distributed

            with waiting(what):
                distributed.barrier()


ALONE = Ranks()


class Job:
    """The group that this process has joined: once in its life, whatever it runs."""

    def __init__(self, ranks: Ranks, watchdog: Watchdog, signs: Signs) -> None:
        self.ranks, self.watchdog, self.signs = ranks, watchdog, signs


_joined: list[Job] = []


@cache
def _silence() -> IO[str]:
    return open(os.devnull, "w", encoding="utf-8")


def among_ranks() -> bool:
    """Whether torchrun, or something that speaks as it does, has started this process as one of several."""
    return (os.environ.get("WORLD_SIZE") or "1") not in ("0", "1") and "RANK" in os.environ


def _number(name: str, otherwise: int) -> int:
    """A number of the environment. Raises UserError where something else stands there."""
    found = os.environ.get(name) or str(otherwise)
    if not (found.isascii() and found.isdigit()):
        raise UserError(
            "is not a whole number", field=name, found=repr(found),
            fix="torchrun and its like set it: unset it in the environment, or start the ranks by them",
        )  # fmt: skip
    return int(found)


def is_first() -> bool:
    """Whether this process is alone, or the first of several."""
    return not among_ranks() or os.environ["RANK"] == "0"


def current_job() -> Job | None:
    """The group that this process has joined, if it has."""
    return _joined[0] if _joined else None


def join_ranks(watchdog: float | None = None, stacks: Path | None = None) -> Ranks:
    """Who this process is by the environment that torchrun gives it. Other ranks than the first fall silent.

    From here on a rank that is silent for `watchdog` seconds ends the run; `stacks` is a folder for what all did then.
    """
    if not among_ranks():
        return ALONE
    if _joined:
        return _joined[0].ranks
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
    local_world = _number("LOCAL_WORLD_SIZE", _number("LOCAL_SIZE", 1))  # torchrun; deepspeed
    ranks = Ranks(rank=rank, world=world, local_world=local_world)
    _number("MASTER_PORT", 0)  # torch reads it below, and would say less
    if not ranks.is_main:
        sys.stdout = _silence()
    if torch.cuda.is_available():
        torch.cuda.set_device(_number("LOCAL_RANK", 0) % torch.cuda.device_count())
    if distributed.is_initialized():  # by Ray Train, whose first rank holds the store
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    store, _, _ = next(rendezvous("env://"))

    def signs() -> Signs:  # a connection each, as a call holds it until it is answered
        return Signs(store.clone(), rank, world, socket.gethostname(), os.getpid())

    dog = Watchdog(signs(), rank=rank, world=world, limit=watchdog, stacks=stacks)
    dog.start()
    _joined.append(Job(ranks, dog, signs()))
    # Objects and numbers on CPUs go over the CPUs' network; tensors on GPUs over the GPUs' own.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with waiting("all ranks to come"):
        if distributed.is_initialized():
            return ranks
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=LONGEST_WAIT)
    return ranks


def leave_ranks() -> None:
    """Part from the others in peace, at the end of a run."""
    if _joined:
        from torch import distributed

        job = _joined[0]
        job.ranks.wait("all ranks to end")
        job.watchdog.stop()
        distributed.barrier()  # nobody's store is gone while another still looks into it
        distributed.destroy_process_group()


def refuse_other_number(processes: int) -> None:
    """Raises UserError where a plan asks for a number of processes, and there is another."""
    world = _number("WORLD_SIZE", 1) if among_ranks() else 1
    if processes not in (1, world):
        raise UserError(
            "is not the number of processes that there are", field="launch.processes",
            found=f"{processes}, and {world} {'was' if world == 1 else 'were'} started",
            fix="leave it out under torchrun; else use the command line, which starts them",
        )  # fmt: skip
