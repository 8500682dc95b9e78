"""When a request to a server is made again, and after how long."""

from __future__ import annotations

import hashlib

AGAIN = frozenset({408, 429, 500, 502, 503, 504, 529})
"""Status codes of a server that may answer later."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds."""
LONGEST_ASKED = 60.0
"""Seconds that a server may ask for."""


def pause(attempt: int, name: str) -> float:
    """Seconds before the attempt after this one (from 0): they double, less up to a half that `name` decides, so that
    requests that failed together do not come back together.

    >>> 0.25 <= pause(0, "a") <= 0.5 and 2 <= pause(3, "a") <= 4, pause(9, "a") <= 30
    (True, True)
    """
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**attempt)
    return longest * (1 + fraction(f"{name}/{attempt}")) / 2


def fraction(name: str) -> float:
    """A number in [0, 1) that the name decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def retry_after(text: str | None) -> float:
    """Retry-After in seconds, at most a minute; a date is not read.

    >>> retry_after("5"), retry_after("9" * 400), retry_after("Wed, 21 Oct 2026 07:28:00 GMT")
    (5.0, 60.0, 0.0)
    """
    return min(LONGEST_ASKED, float(text)) if text is not None and text.strip().isdecimal() else 0.0
