"""Ranks fail together: the one where something went wrong says so, in its own words; the others end without a word."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from whet.errors import UserError
from whet.ranks.group import Ended, Job, current_job
from whet.ranks.pulse import pulse
from whet.ranks.watchdog import FAILED, GO_ON

GRACE = 8.0
"""Seconds in which the reason may come from where it is known, after others could not be reached."""
DEFECT = 1
"""Exit code of what is not the user's to mend."""


@contextmanager
def together() -> Iterator[None]:
    """Around the work of a rank: what goes wrong in one is told once, and ends all.

    Raises Ended once it has been told. A process alone keeps its exception.
    """
    try:
        yield
    except Exception as error:
        job = current_job()
        if job is None:
            raise
        code = _ended(job, error)
        job.watchdog.stop()
        raise Ended(code) from error


def _ended(job: Job, error: Exception) -> int:
    """Tell, or wait until it has been told; returns the exit code."""
    if isinstance(error, Ended):
        return _told(job) or FAILED
    if not pulse.lost:
        return _tell(job, error)
    # Another rank could not be reached: most often it has failed and says so, or was ended and cannot.
    if (code := _told(job)) is not None:
        return code
    gone = [f"rank {rank} is gone: {job.watchdog.doing(rank)}" for rank in job.watchdog.gone()]
    return _tell(job, UserError("; ".join(gone), fix=GO_ON) if gone else error)


def _told(job: Job) -> int | None:
    """The exit code, as soon as the user has been told by another rank; None where that does not come."""
    until = time.monotonic() + GRACE
    with suppress(Exception):  # without a store nobody can tell
        while time.monotonic() < until:
            if (code := job.signs.said()) is not None:
                return code
            time.sleep(0.2)
    return None


def _tell(job: Job, error: Exception) -> int:
    """Tell the user what happened here, unless another rank was first; returns the exit code."""
    first = True
    with suppress(Exception):
        first = job.signs.end(f"{type(error).__name__}: {error}")
    if not first:
        return _told(job) or FAILED
    code = FAILED if isinstance(error, UserError) else DEFECT
    if code == DEFECT:
        traceback.print_exception(error)
    kind = "" if code == FAILED else f"{type(error).__name__}: "
    print("error: " + " ".join(f"rank {job.ranks.rank}: {kind}{error}".split()), file=sys.stderr, flush=True)
    with suppress(Exception):
        job.signs.say(code)
    return code
