"""What each rank tells the others of itself through the job's store, several times a watchdog's time: is it there, does
it get on, what is it doing?"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from whet.ranks.pulse import pulse

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store


SAID = "whet/said"
STARTING = 600.0
"""Seconds that a rank may at least take to come: libraries are loaded, on a busy machine from a slow disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """A rank's latest sign of life."""

    tick: int = -1
    """Moves as long as the process runs at all: it comes from a thread that does nothing else."""
    beats: int = -1
    """Moves as long as its work gets on."""
    phase: str = "it has not come yet"
    waits_for: str = ""
    host: str = ""
    pid: int = 0


@dataclass(slots=True)
class Seen:
    """Of one rank: its latest sign, and since when (monotonic seconds) it has not ticked, and not got on."""

    sign: Sign
    ticked: float
    got_on: float

    def update(self, sign: Sign, now: float) -> None:
        if sign.tick != self.sign.tick:
            self.ticked = now
        if sign.beats != self.sign.beats:
            self.got_on = now
        self.sign = sign

    def is_silent(self, now: float, limit: float) -> bool:
        """A rank that waits for others is held up by them, as long as it is there at all."""
        if self.sign.tick < 0:
            limit = max(limit, STARTING)
        return now - (self.ticked if self.sign.waits_for else self.got_on) > limit


def verdict(seen: list[Seen], now: float, limit: float) -> tuple[str, list[int]]:
    """What is wrong, in words, and the ranks it is about; nothing ("") where all is well."""
    silent = [rank for rank, one in enumerate(seen) if one.is_silent(now, limit)]
    if silent:
        silence = [f"rank {rank} has given no sign of life for {limit:g} s: {doing(seen[rank])}" for rank in silent]
        return "; ".join(silence), silent
    if all(one.sign.waits_for and now - one.got_on > limit for one in seen):
        told = ", ".join(f"rank {rank} for {one.sign.waits_for}" for rank, one in enumerate(seen))
        return f"all ranks have waited for each other for {limit:g} s: {told}", list(range(len(seen)))
    return "", []


def doing(one: Seen) -> str:
    """What a rank was last known to do."""
    return one.sign.phase + (f", waiting for {one.sign.waits_for}" if one.sign.waits_for else "")


def code_told(store: Store) -> int | None:
    """The exit code of a job whose user has been told why it ends; None as long as nobody has."""
    return int(store.get(SAID)) if store.check([SAID]) else None


class Signs:
    """The store, as far as signs of life and the end of a job go. Each thread has one of its own."""

    def __init__(self, store: Store, rank: int, world: int, host: str, pid: int) -> None:
        self._store, self._rank, self._world, self._host, self._pid = store, rank, world, host, pid
        self._tick = 0
        store.set_timeout(timedelta(seconds=20))

    def send(self) -> None:
        self._tick += 1
        sign = Sign(
            tick=self._tick, beats=pulse.beats, phase=pulse.phase, waits_for=pulse.waits_for, host=self._host,
            pid=self._pid,
        )  # fmt: skip
        self._store.set(f"whet/sign/{self._rank}", json.dumps(asdict(sign)))

    def read(self) -> list[Sign]:
        """Of all ranks; one that has not come yet has an empty one."""
        names = [f"whet/sign/{rank}" for rank in range(self._world)]
        return [Sign(**json.loads(self._store.get(name))) if self._store.check([name]) else Sign() for name in names]

    def end(self, why: str) -> bool:
        """Write down why the job ends. Returns whether this is the first reason: its finder tells the user."""
        own = f"{self._rank}: {why}"
        return bool(self._store.compare_set("whet/end", "", own) == own.encode())

    def ask_for_stacks(self) -> None:
        """Every rank that still can is to write down where it is."""
        self._store.set("whet/stacks", "wanted")

    def stacks_are_wanted(self) -> bool:
        return bool(self._store.check(["whet/stacks"]))

    def say(self, code: int) -> None:
        """The user has been told, and every process is to end with this exit code."""
        self._store.set(SAID, str(code))

    def said(self) -> int | None:
        """The exit code, once the user has been told why: nobody may end before, as the first end ends all."""
        return code_told(self._store)
