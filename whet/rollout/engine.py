"""The seam between those who need text and whoever generates it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from whet.ranks.pulse import beat
from whet.schema.rollouts import Completion, Request


class Engine(Protocol):
    """Generates completions for requests.

    A completion depends on its request and the weights alone: not on the batch, the order, the shard or a restart.
    """

    @property
    def batched(self) -> bool:
        """Whether requests that are asked together share their arithmetic, whose last bits may then depend on it: who
        wants the same bytes after a restart asks for the same lists. Answers of others stand alone."""
        ...

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield one completion a request, as they come.

        A batched engine keeps the order of the requests, and may take all of them first. Others pull requests as they
        need them and yield in any order, but never run more than a window ahead of the oldest that is unanswered.
        """
        ...

    def sync(self, version: int) -> None:
        """Generate with the weights of the model that is followed as they are now; completions carry `version`."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


def answers(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """All completions, in the order of the requests, whose keys differ."""
    beat("generating")
    if engine.batched:
        return list(engine.generate(requests))
    by_key = {completion.key: completion for completion in engine.generate(requests)}
    return [by_key[request.key] for request in requests]
