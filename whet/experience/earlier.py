"""What another number of processes has left, found by name: nothing that was answered is asked again.

    engine = recalling(engine, root.glob("earlier-*/*rollouts*.jsonl"))

In memory is only where each line begins.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from whet.experience.sampled import Sampled, sampled_of
from whet.experience.store import completion_of
from whet.rollout.engine import Engine
from whet.runs.files import reading
from whet.schema.rollouts import Completion, Request


class Earlier:
    """Lines of JSON files by their `key`. A line that a kill cut short is none."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = sorted(paths)
        self._places: dict[str, tuple[int, int]] = {}
        for number, path in enumerate(self._paths):
            position = 0
            with reading(path), path.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        self._places[json.loads(line)["key"]] = number, position
                    position += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def row(self, key: str) -> dict[str, Any]:
        number, position = self._places[key]
        with self._paths[number].open("rb") as file:
            file.seek(position)
            row: dict[str, Any] = json.loads(file.readline())
            return row

    def group(self, key: str) -> Sampled | None:
        """The scored group of a prompt, where the files hold groups."""
        return sampled_of(self.row(key)) if key in self else None


class Recalling:
    """An engine that first looks whether it was asked before. The one below belongs to the caller."""

    def __init__(self, engine: Engine, earlier: Earlier) -> None:
        self._engine, self._earlier = engine, earlier

    @property
    def batched(self) -> bool:
        return self._engine.batched

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for known, same in groupby(requests, key=lambda request: request.key in self._earlier):
            if known:
                yield from (completion_of(self._earlier.row(request.key)) for request in same)
            else:
                yield from self._engine.generate(same)

    def sync(self, version: int) -> None:
        self._engine.sync(version)

    def close(self) -> None:
        """The engine is the caller's."""


def recalling(engine: Engine, paths: Iterable[Path]) -> Engine:
    """The engine itself where there is nothing to recall."""
    earlier = Earlier(paths)
    return Recalling(engine, earlier) if earlier else engine
