"""Completions on disk, so that a killed stage neither loses nor repeats them.

`rollouts.jsonl` holds chunks of completions in the order in which they are asked for. The last line of a chunk says so
(`"end": true`): a chunk that a kill cut short is removed when the file is opened, and asked for again as a whole. Whole
chunks, because only the same requests together make the same batches, and so the same bytes (`whet.rollout.native`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from whet.errors import RunError
from whet.rollout.engine import Engine
from whet.runs.files import json_line, writing
from whet.schema.rollouts import Completion, Request


class RolloutStore:
    """Answers requests from the file as far as it goes, then from the engine, writing what that gives.

    `num_waiting` is the number of completions in the file that this process has not asked for yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            end, self.num_waiting = _whole_chunks(path)
            os.truncate(path, end)
        self._stored = _chunks(path, end)

    def answer(self, engine: Engine, requests: Sequence[Request]) -> list[Completion]:
        """Completions of one chunk of requests. Callers ask for the same chunks in the same order every time.

        Raises RunError where the file holds other requests.
        """
        if not requests:
            return []
        completions = next(self._stored, None)
        if completions is None:
            # Log-probs are left out of the file, and so of what is handed on: both ways give the same thing.
            completions = [_as_stored(completion) for completion in engine.generate(requests)]
            self._append(completions)
        elif [c.key for c in completions] != [r.key for r in requests]:
            raise RunError(
                "holds answers to other requests", file=str(self._path),
                fix="pass --fresh to move what an earlier run made to archive/",
            )  # fmt: skip
        else:
            self.num_waiting -= len(completions)
        return completions

    def _append(self, completions: Sequence[Completion]) -> None:
        rows = [_row(completion) for completion in completions]
        rows[-1]["end"] = True
        with writing(self._path), self._path.open("a", encoding="utf-8") as handle:
            handle.write("".join(map(json_line, rows)))
            handle.flush()
            os.fsync(handle.fileno())


def _chunks(path: Path, end: int) -> Iterator[list[Completion]]:
    """The chunks in the first `end` bytes."""
    chunk: list[Completion] = []
    position = 0
    with path.open("rb") as handle:
        while position < end:
            line = handle.readline()
            position += len(line)
            row = json.loads(line)
            chunk.append(_completion(row))
            if row.get("end"):
                yield chunk
                chunk = []


def _whole_chunks(path: Path) -> tuple[int, int]:
    """Bytes and lines up to the end of the last whole chunk. A line that is no JSON (power lost) ends the search."""
    position = end = num = 0
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            position += len(line)
            try:
                last = json.loads(line).get("end", False)
            except ValueError:
                break
            if last and line.endswith(b"\n"):
                end, num = position, number
    return end, num


def _as_stored(completion: Completion) -> Completion:
    return _completion(_row(completion))


def _row(completion: Completion) -> dict[str, Any]:
    row: dict[str, Any] = {
        "key": completion.key,
        "text": completion.text,
        "ids": list(completion.ids),
        "finish_reason": completion.finish_reason,
    }
    return row | ({"error": completion.error} if completion.error else {})


def _completion(row: dict[str, Any]) -> Completion:
    return Completion(
        key=row["key"],
        ids=tuple(row["ids"]),
        text=row["text"],
        logprobs=(),
        finish_reason=row["finish_reason"],
        error=row.get("error"),
    )
