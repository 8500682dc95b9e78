"""A judge's replies on disk until the scores made of them are: a kill on the way asks none of them again.

    engine = Remembered(lambda: open_engine(...), folder / "judging.jsonl")
    scores = reward.score(prompts, completions)         # through the engine
    file.add(groups)                                    # the scores are on disk now
    engine.forget()

The file holds the replies of one window, so it stays small however many prompts there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

from whet.experience.store import completion_of, completion_row
from whet.rollout.engine import Engine
from whet.runs.files import json_line, read_jsonl, writing
from whet.schema.rollouts import Completion, Request


class Remembered:
    """An engine that answers from its file what it has answered before; the one below is opened when it is needed."""

    def __init__(self, opening: Callable[[], Engine], path: Path) -> None:
        self._opening, self._path = opening, path
        self._known = {row["key"]: completion_of(row) for row in read_jsonl(path)}
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
            if self._known or path.stat().st_size:  # a last line that a kill cut short goes
                os.truncate(path, 0)
                self._write(self._known.values())

    @cached_property
    def _engine(self) -> Engine:
        return self._opening()

    @property
    def batched(self) -> bool:
        return self._engine.batched

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Of a batched engine a list is known as a whole or not at all: the same requests together, the same bytes."""
        asked = list(requests)
        unknown = [request for request in asked if request.key not in self._known]
        if unknown and self.batched:
            unknown = asked
        for completion in self._engine.generate(unknown) if unknown else ():
            self._write([completion])
            self._known[completion.key] = completion_of(completion_row(completion))
        yield from (self._known[request.key] for request in asked)

    def sync(self, version: int) -> None:
        self._engine.sync(version)

    def forget(self) -> None:
        """What was made of the replies is on disk."""
        self._known.clear()
        with writing(self._path):
            self._file.truncate(0)

    def close(self) -> None:
        """The file goes once nothing in it is needed."""
        self._file.close()
        if not self._known:
            self._path.unlink(missing_ok=True)

    def _write(self, completions: Iterable[Completion]) -> None:
        with writing(self._path):
            self._file.write("".join(json_line(completion_row(completion)) for completion in completions))
            self._file.flush()
