"""Signs of life of this process: what it is doing, and that it gets on. The watchdog of every rank reads them.

    beat("generating")                  I have got on
    with waiting("the gradients"): ...  others hold me up, and my silence is theirs
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class _Pulse:
    """Written by whoever works, read by the watchdog's thread."""

    beats = 0
    phase = "starting"
    waits_for = ""
    lost = ""
    """What this process waited for when the others could not be reached any more."""


pulse = _Pulse()


def beat(phase: str = "") -> None:
    """Work has got on; with `phase`, this is what is done from here on."""
    pulse.beats += 1
    if phase:
        pulse.phase = phase


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """In here this process waits for the other ranks to bring their part of `what`."""
    pulse.waits_for = what
    try:
        yield
    except Exception:
        pulse.lost = what
        raise
    finally:
        pulse.waits_for = ""
        pulse.beats += 1
