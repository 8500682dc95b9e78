"""Several servers of the same model: who is asked next.

The one with the fewest open requests. One that keeps failing is set aside, and tried again after a while, each time a
longer one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

FAILURES = 3
"""In a row, before a server is set aside."""
FIRST_REST, LONGEST_REST = 1.0, 60.0
"""Seconds."""


@dataclass(slots=True, eq=False)
class Endpoint:
    """One server, and how it has done."""

    url: str
    num_open: int = 0
    num_answered: int = 0
    failures: int = 0
    """In a row."""
    rests_until: float = 0.0


class Endpoints:
    """All servers. Whoever takes one gives it back by `answered` or `failed`."""

    def __init__(self, urls: Sequence[str], now: Callable[[], float] = time.monotonic) -> None:
        self._all, self._now = [Endpoint(url.rstrip("/")) for url in urls], now

    def take(self) -> Endpoint:
        """Where all rest, the one that has rested most."""
        now = self._now()
        awake = [endpoint for endpoint in self._all if endpoint.rests_until <= now]
        chosen = min(awake, key=lambda endpoint: endpoint.num_open) if awake else None
        chosen = chosen or min(self._all, key=lambda endpoint: endpoint.rests_until)
        chosen.num_open += 1
        return chosen

    def answered(self, endpoint: Endpoint) -> None:
        endpoint.num_open -= 1
        endpoint.num_answered += 1
        endpoint.failures, endpoint.rests_until = 0, 0.0

    def failed(self, endpoint: Endpoint) -> None:
        endpoint.num_open -= 1
        endpoint.failures += 1
        if endpoint.failures >= FAILURES:
            rest = min(LONGEST_REST, FIRST_REST * 2 ** (endpoint.failures - FAILURES))
            endpoint.rests_until = self._now() + rest

    @property
    def num_answered(self) -> int:
        return sum(endpoint.num_answered for endpoint in self._all)
