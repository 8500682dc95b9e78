"""Work on many things by several processes, one a core, its results in order.

The processes are forked, so that they have the work's tokenizer and tables already; what they are given and what they
give back goes through pipes. They touch neither torch nor a device.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, TypeVar

from whet.ranks.pulse import beat

MAX_PROCESSES = 8
AHEAD = 3
"""Things under way or waiting for each process: more would only fill memory where whoever takes the results is slow."""
DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""

T = TypeVar("T")
R = TypeVar("R")


def spread(work: Callable[[T], R], things: Iterable[T]) -> Iterator[R]:
    """`map(work, things)`, by several processes where there are several things and cores.

    Things are asked for as they are needed. What work raises is raised here, when its result's turn comes.
    """
    things = iter(things)
    first = list(islice(things, 2))
    processes = num_processes()
    if processes == 1 or len(first) < 2:
        for thing in chain(first, things):
            beat()
            yield work(thing)
        return
    waiting: deque[Future[R]] = deque()
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, mp_context=fork, initializer=_begin, initargs=(work, os.getpid())) as pool:
        try:
            for thing in chain(first, things):
                with _single_threaded():
                    waiting.append(pool.submit(_run, thing))
                beat()
                if len(waiting) > AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                beat()
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def num_processes() -> int:
    """How many to work with: one a core that this process may use. One where forking is not safe (macOS, Windows)."""
    return min(len(os.sched_getaffinity(0)), MAX_PROCESSES) if sys.platform == "linux" else 1


_work: Callable[[Any], Any] | None = None
"""In a forked process, what it does."""


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    """First thing in a forked process."""
    global _work
    _work = work
    # A parent that is killed could not end its processes, and they would hold on to its locks.
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    gc.freeze()  # else the collector would write to, and so copy, every object that is shared with the parent
    gc.set_threshold(50_000)  # almost nothing made here is garbage in cycles
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends them


def _run(thing: Any) -> Any:
    assert _work is not None
    return _work(thing)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Processes forked here tokenise with one thread each; those of the tokenizers library do not survive a fork."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
