"""A thread of every rank that sends its signs of life and reads the others': a rank that hangs ends the run, by name.

Collectives wait for ever by themselves, and their own timeouts name the rank that waited, not the one that hung. Here a
rank that waits for others is never to blame while it is there, and one that does not wait must get on.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from whet.ranks.life import Seen, Sign, Signs, verdict

FAILED = 2
"""Exit code of a run that the user can do something about."""
GO_ON = "the same command goes on from the last checkpoint"
LAUNCHED = "WHET_LAUNCHED"
"""Set by our own launcher."""
LONGEST_INTERVAL = 1.0
"""Seconds between two signs of life, at most."""


class Watchdog(threading.Thread):
    """Watches from `start()` to `stop()`."""

    def __init__(self, signs: Signs, *, rank: int, world: int, limit: float | None, stacks: Path | None) -> None:
        """`limit` is the time of silence that ends the run; None lets a rank be silent for ever. `stacks` is the folder
        for what each rank was doing when the run ended so."""
        super().__init__(name="watchdog", daemon=True)
        now = time.monotonic()
        self._signs, self._rank, self._limit, self._stacks = signs, rank, limit, stacks
        self._interval = min(LONGEST_INTERVAL, (limit or 60.0) / 5)
        self._parent, self._looked = os.getppid(), now
        self._seen = [Seen(Sign(), now, now) for _ in range(world)]
        self._stopped, self._dumped = threading.Event(), False

    def stop(self) -> None:
        self._stopped.set()

    def gone(self) -> list[int]:
        """Ranks whose process has not ticked for some intervals, though it should."""
        now = time.monotonic()
        return [rank for rank, one in enumerate(self._seen) if now - one.ticked > 5 * self._interval]

    def doing(self, rank: int) -> str:
        return self._seen[rank].sign.phase

    def run(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                self._look()
            except Exception:  # no store at this moment; or none any more, with the process that holds the job together
                if os.getppid() != self._parent:
                    print("error: the process that started the ranks is gone", file=sys.stderr, flush=True)
                    os._exit(FAILED)

    def _look(self) -> None:
        self._signs.send()
        if self._signs.stacks_are_wanted():
            self._dump()
        if (code := self._signs.said()) is not None:
            self._leave(code)
        signs, now = self._signs.read(), time.monotonic()
        stood_still = now - self._looked > 10 * self._interval
        self._looked = now
        for one, sign in zip(self._seen, signs, strict=True):
            one.update(sign, now)
            if stood_still:  # who has not looked for so long cannot say that the others did nothing
                one.ticked = one.got_on = now
        if self._limit is None:
            return
        why, ranks = verdict(self._seen, now, self._limit)
        if not why:
            return
        self._dump()
        self._signs.ask_for_stacks()
        if self._signs.end(why):
            time.sleep(2 * self._interval)  # for the others' stacks, before they lose this one
            told = f"{why}; stacks are in {self._stacks}" if self._stacks is not None else why
            print(f"error: {told}; {GO_ON}", file=sys.stderr, flush=True)
            self._kill(ranks)
            self._signs.say(FAILED)
            self._leave(FAILED)

    def _leave(self, code: int) -> None:
        """End this process from a thread: its main thread may never come back from where it waits."""
        if not self._stopped.wait(2 * self._interval):  # else it is ending by itself
            os._exit(code)

    def _dump(self) -> None:
        """Write down where every thread of this process is, once."""
        if self._stacks is None or self._dumped:
            return
        self._dumped = True
        with suppress(OSError):
            self._stacks.mkdir(parents=True, exist_ok=True)
            with (self._stacks / f"rank-{self._rank}.txt").open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)

    def _kill(self, ranks: list[int]) -> None:
        """A stopped process hears nothing else, and torchrun would wait for it; our own launcher ends it by itself."""
        if LAUNCHED in os.environ:
            return
        own: Any = self._seen[self._rank].sign
        for rank in ranks:
            sign = self._seen[rank].sign
            if rank != self._rank and sign.pid and sign.host == own.host:
                with suppress(OSError):
                    os.kill(sign.pid, signal.SIGKILL)
