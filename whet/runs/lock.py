"""Who works in a run directory: one process at a time, and whether there is one.

The lock is the file system's (`flock` on `.lock`), so that a process that is killed lets go of it in the same moment.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from whet.errors import RunError
from whet.runs.files import writing
from whet.runs.layout import RunPaths

TRIES, PAUSE = 10, 0.05
"""`is_held` has the lock for a moment: who wants to work asks again for half a second before he is refused."""


@contextmanager
def only_one_process(paths: RunPaths) -> Iterator[None]:
    """Hold the run directory; a second process is refused instead of writing into the same files."""
    with writing(paths.root):
        paths.root.mkdir(parents=True, exist_ok=True)
        handle = paths.lock.open("w")
    with handle:
        try:
            taken = _take(handle)
        except (ImportError, OSError) as error:  # Windows has no flock, nor have some network file systems
            why = f"{paths.root}: cannot be locked ({getattr(error, 'strerror', None) or error})"
            print(f"warning: {why}; see to it that no second process works in it", file=sys.stderr)
            taken = True
        if not taken:
            raise RunError(
                "another process is working in this run directory", file=str(paths.root),
                fix="wait for it, or choose another `run`",
            )  # fmt: skip
        yield


def _take(handle: IO[str]) -> bool:
    """Take the lock for good. Raises ImportError or OSError where there is none to take."""
    import fcntl

    for attempt in range(TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(PAUSE if attempt < TRIES - 1 else 0)
        else:
            return True
    return False


def is_held(paths: RunPaths) -> bool | None:
    """Whether a process works in the run directory; None where that cannot be known. Writes nothing."""
    try:
        import fcntl

        with paths.lock.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not see each other
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except (ImportError, OSError):
        return None
    return False
