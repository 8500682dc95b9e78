"""An engine of this process whose model moves to the CPU where its device's memory runs out, in the middle of a list.

Completions come in the order of their requests, so what has been answered stays answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from whet.models.placed import Placed
from whet.rollout.native import NativeEngine
from whet.schema.rollouts import Completion, Request


class MovingEngine:
    """An `Engine` of a model that does not train."""

    batched = True

    def __init__(self, placed: Placed[NativeEngine]) -> None:
        self._placed = placed

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        asked = list(requests)
        answered = 0
        try:
            for completion in self._placed.here().generate(asked):
                answered += 1
                yield completion
            return
        except torch.OutOfMemoryError:
            if not self._placed.may_move:
                raise
        self._placed.move()
        yield from self._placed.here().generate(asked[answered:])

    def sync(self, version: int) -> None:
        self._placed.here().sync(version)

    def close(self) -> None:
        """Nothing to free: memory lives as long as its rows."""
