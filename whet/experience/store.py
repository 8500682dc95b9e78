"""Completions on disk, so that a killed stage neither loses nor repeats them.

    store = RolloutStore(folder / "rollouts.jsonl")
    for completion in store.stream(engine, requests, chunk=128): ...        in the order of the requests

The file holds a completion a line in the order of the requests; whoever asks for the same requests again gets them from
there. How it grows depends on the engine:

* One whose answers may depend in a last bit on what is asked together (`whet.rollout.native`) is asked for `chunk`
  requests at a time. A chunk that a kill cut short is taken out of the file and asked for again as a whole: the same
  requests together make the same bytes.
* A server's answers come in any order. One whose turn it is joins the file at once; others wait in a second file beside
  it (`rollouts.early.jsonl`) until those before them are there. No answer is asked for twice, and memory holds no more
  of them than the engine runs ahead.

Either way the file ends the same, and the second one is gone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from whet.errors import RunError
from whet.rollout.engine import Engine
from whet.runs.files import json_line, read_jsonl, write_jsonl, writing
from whet.schema.rollouts import Completion, Request

Tell = Callable[[int], None]
"""Told how many completions came that were not stored before; less than none where a torn chunk is asked for again."""

STALE_LINES = 1024
"""Lines of the second file that are worth nothing any more before it is written anew."""


class RolloutStore:
    """One stream of completions.

    `num_stored` is how many of them an earlier process left, `seconds` how long this one has waited for the engine.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            end, self._num_lines = _whole_lines(path)
            os.truncate(path, end)
        self._early = _Early(path.with_name(f"{path.stem}.early.jsonl"), self._num_lines)
        self.num_stored = self._num_lines + len(self._early)
        self.seconds = 0.0

    def stream(
        self, engine: Engine, requests: Iterable[Request], *, chunk: int, tell: Tell = lambda num: None
    ) -> Iterator[Completion]:
        """A completion for each request, in their order. Callers ask for the same requests every time.

        Raises RunError where the file holds answers to others.
        """
        if engine.batched:
            return self._by_chunks(engine, requests, chunk, tell)
        return self._singly(engine, requests, tell)

    def _by_chunks(self, engine: Engine, requests: Iterable[Request], chunk: int, tell: Tell) -> Iterator[Completion]:
        lines, rest = _Lines(self._path), iter(requests)
        while asked := list(islice(rest, chunk)):
            start = lines.position
            # In this order: zip takes from the first, and leaves the second at the line that is not for it.
            stored = [self._checked(line, request) for request, line in zip(asked, lines, strict=False)]
            if len(stored) < len(asked):
                with writing(self._path):
                    os.truncate(self._path, start)
                begun = time.perf_counter()
                # Log-probs are left out of the file, and so of what is handed on: both ways give the same thing.
                drawn = [_as_stored(completion) for completion in engine.generate(asked)]
                self.seconds += time.perf_counter() - begun
                with writing(self._path), self._path.open("a", encoding="utf-8") as file:
                    _write(file, map(completion_row, drawn))
                    os.fsync(file.fileno())
                lines.position = self._path.stat().st_size
                tell(len(asked) - len(stored))
                stored = drawn
            yield from stored

    def _singly(self, engine: Engine, requests: Iterable[Request], tell: Tell) -> Iterator[Completion]:
        rest = iter(requests)
        for line in _Lines(self._path):
            request = next(rest, None)
            if request is None:
                return
            yield self._checked(line, request)
        with writing(self._path):
            file = self._path.open("a", encoding="utf-8")
        with file:
            # Only writing is writing: the engine and whoever takes the completions have failures of their own.
            for ready in self._arriving(engine, rest, tell):
                with writing(self._path):
                    _write(file, map(completion_row, ready))
                self._early.shrink()
                yield from ready
            with writing(self._path):
                os.fsync(file.fileno())
        self._early.remove()

    def _arriving(self, engine: Engine, requests: Iterator[Request], tell: Tell) -> Iterator[list[Completion]]:
        """Lists of completions as it becomes their turn."""
        turn, asked, pulling = self._num_lines, dict[str, int](), 0.0

        def unanswered() -> Iterator[Request]:
            nonlocal pulling
            place, begun = turn, time.perf_counter()
            for request in requests:
                pulling += time.perf_counter() - begun
                if (early := self._early.get(place)) is not None:
                    self._check(early.key, request)
                else:
                    asked[request.key] = place
                    yield replace(request, logprobs=False)  # the file would not hold them
                place, begun = place + 1, time.perf_counter()

        begun = time.perf_counter()
        for completion in engine.generate(unanswered()):
            self.seconds += time.perf_counter() - begun - pulling
            pulling = 0.0
            place = asked.pop(completion.key)
            self._early.put(place, _as_stored(completion), kept=place != turn)
            tell(1)
            ready = self._early.take_from(turn)
            turn += len(ready)
            yield ready
            begun = time.perf_counter()
        yield self._early.take_from(turn)

    def _checked(self, row: Mapping[str, Any], request: Request) -> Completion:
        self._check(row["key"], request)
        return completion_of(row)

    def _check(self, key: str, request: Request) -> None:
        if key != request.key:
            raise RunError(
                "holds answers to other requests", file=str(self._path),
                fix="pass --fresh to move what an earlier run made to archive/",
            )  # fmt: skip


class _Early:
    """Completions that came before their turn, by their place: in memory, and in a file for a later process."""

    def __init__(self, path: Path, since: int) -> None:
        """Those of places below `since` had their turn before a kill."""
        self._path, self._num_lines = path, 0
        self._file: IO[str] | None = None
        self._waiting: dict[int, Completion] = {}
        with writing(path):
            if path.exists():
                os.truncate(path, _whole_lines(path)[0])
        for row in read_jsonl(path):
            self._num_lines += 1
            if row["place"] >= since:
                self._waiting[row["place"]] = completion_of(row)

    def __len__(self) -> int:
        return len(self._waiting)

    def get(self, place: int) -> Completion | None:
        return self._waiting.get(place)

    def put(self, place: int, completion: Completion, *, kept: bool) -> None:
        """Without `kept` its turn has come, and the file need not know it."""
        self._waiting[place] = completion
        if not kept:
            return
        with writing(self._path):
            self._file = self._file or self._path.open("a", encoding="utf-8")
            _write(self._file, [_early_row(place, completion)])
        self._num_lines += 1

    def take_from(self, turn: int) -> list[Completion]:
        """Everything from this place on, up to the first that is missing."""
        taken: list[Completion] = []
        while (completion := self._waiting.pop(turn + len(taken), None)) is not None:
            taken.append(completion)
        return taken

    def shrink(self) -> None:
        """Write the file anew where most of its lines have had their turn; those must be elsewhere by now."""
        if self._num_lines <= len(self._waiting) + STALE_LINES:
            return
        self.close()
        write_jsonl(self._path, (_early_row(place, completion) for place, completion in self._waiting.items()))
        self._num_lines = len(self._waiting)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def remove(self) -> None:
        self.close()
        self._path.unlink(missing_ok=True)


class _Lines:
    """The rows of the file from where it was read last; `position` is where that is."""

    def __init__(self, path: Path) -> None:
        self._path, self.position = path, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._path.open("rb") as file:
            file.seek(self.position)
            while line := file.readline():
                self.position += len(line)
                yield json.loads(line)


def _write(file: IO[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Hand whole lines to the operating system: what is there survives the end of this process."""
    file.write("".join(map(json_line, rows)))
    file.flush()


def _whole_lines(path: Path) -> tuple[int, int]:
    """Bytes and number of the lines up to the first that is not whole, or no JSON (power lost)."""
    end = num = 0
    with path.open("rb") as file:
        for line in file:
            try:
                json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            end, num = end + len(line), num + 1
    return end, num


def _as_stored(completion: Completion) -> Completion:
    return completion_of(completion_row(completion))


def _early_row(place: int, completion: Completion) -> dict[str, Any]:
    return {"place": place} | completion_row(completion)


def completion_row(completion: Completion) -> dict[str, Any]:
    row: dict[str, Any] = {
        "key": completion.key,
        "text": completion.text,
        "ids": list(completion.ids),
        "finish_reason": completion.finish_reason,
    }
    if completion.counted_tokens is not None:
        row["counted_tokens"] = completion.counted_tokens
    if completion.continuation_logprobs:
        row["continuation_logprobs"] = list(completion.continuation_logprobs)
    return row | ({"error": completion.error} if completion.error else {})


def completion_of(row: Mapping[str, Any]) -> Completion:
    return Completion(
        key=row["key"],
        ids=tuple(row["ids"]),
        text=row["text"],
        logprobs=(),
        finish_reason=row["finish_reason"],
        counted_tokens=row.get("counted_tokens"),
        error=row.get("error"),
        continuation_logprobs=tuple(row.get("continuation_logprobs", ())),
    )
