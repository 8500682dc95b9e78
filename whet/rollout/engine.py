"""The seam between those who need text and whoever generates it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from whet.schema.rollouts import Completion, Request


class Engine(Protocol):
    """Generates completions for requests.

    A completion depends on its request and the weights alone: not on the batch, the order, the shard or a restart.
    """

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield one completion per request, in the order of the requests, as soon as each batch is ready."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...
