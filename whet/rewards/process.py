"""Calls of a function in a process of its own, each with a time limit that holds whatever the function does.

    worker = Worker("rewards.py:accuracy", timeout=10.0, what="rewards.py:accuracy")
    scores = worker.call([Call(args=("2+3?", "5"), columns={"reference": "5"})])

A call that hangs costs its process; a new one is started and the others go on. Where several were under way, each is
made again alone, since nobody can say which of them it was. The process ends with the worker.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from whet.errors import ConfigError
from whet.schema.rollouts import Score

START_SECONDS = 300.0
"""Time to import the function's module."""
GRACE_SECONDS = 1.0
"""Time that a call may take beyond its limit, for what is not its own."""
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from whet.rewards.worker import main; main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Arguments of one call."""

    args: tuple[Any, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)


class Worker:
    """One function, called in another process."""

    def __init__(
        self, path: str, *, timeout: float, what: str, concurrency: int = 1, field: str = "reward.path"
    ) -> None:
        """`what` begins the error of a score. The process starts when it is first needed."""
        self._path, self._timeout, self._concurrency = path, timeout, concurrency
        self._what, self._field = what, field
        self._child: _Child | None = None

    def parameters(self) -> frozenset[str] | None:
        """Names of the function's parameters; None where it takes any. Raises ConfigError where there is none."""
        return self._running().takes

    def call(self, calls: Sequence[Call]) -> list[Score]:
        """What the function says of each, in order; a call that fails or takes too long has no value.

        Raises ConfigError, for `field`, where there is no such function.
        """
        scores: dict[int, Score] = {}
        waiting: dict[int, bytes] = {}
        for number, call in enumerate(calls):
            try:
                waiting[number] = pickle.dumps((number, call.args, dict(call.columns)))
            except Exception as error:  # a column's own reduce method may raise anything
                scores[number] = self._failed(f"cannot be given its columns: {type(error).__name__}: {error}")
        self._run_all(waiting, scores)
        return [scores[number] for number in range(len(calls))]

    def _run_all(self, waiting: dict[int, bytes], scores: dict[int, Score]) -> None:
        while waiting:
            for number in self._run(waiting, scores):
                self._run_all({number: waiting.pop(number)}, scores)

    def _run(self, waiting: dict[int, bytes], scores: dict[int, Score]) -> list[int]:
        """Move calls from `waiting` to `scores` until none waits, or the process is lost.

        Gives the calls of which one has cost the process: they still wait.
        """
        fresh = self._child is None
        child = self._running()
        child.send(list(waiting.values()))
        begun: list[int] = []
        while waiting:
            try:
                reply = child.replies.get(timeout=self._timeout + GRACE_SECONDS)
            except queue.Empty:
                reason = f"took longer than {self._timeout:g} s"
                break
            if reply is None:
                reason = f"ended its process (exit code {child.process.wait()})"
                break
            if "begin" in reply:
                begun.append(reply["begin"])
                continue
            number = reply["end"]
            begun.remove(number)
            del waiting[number]
            scores[number] = self._score(reply)
        else:
            return []
        child.end()
        self._child = None
        if len(begun) > 1:
            return begun
        # An old process may have been killed between two scores; a new one that begins nothing is lost by what it read.
        for number in begun or list(waiting)[: int(fresh)]:
            del waiting[number]
            scores[number] = self._failed(reason)
        return []

    def _score(self, said: Mapping[str, Any]) -> Score:
        error = said.get("error")
        return Score(value=said["value"], parts=said["parts"]) if error is None else self._failed(error)

    def _failed(self, reason: str) -> Score:
        return Score(value=None, error=f"{self._what} {reason}")

    def _running(self) -> _Child:
        """The process; a new one where there is none, or the last one was lost."""
        if self._child is None:
            self._child = self._start()
        return self._child

    def _start(self) -> _Child:
        child = _Child(self._path, self._timeout, self._concurrency)
        first: dict[str, Any] | None
        try:
            first = child.replies.get(timeout=START_SECONDS)
        except queue.Empty:
            first = {"problem": f"cannot be imported within {START_SECONDS:g} s"}
        if first is None:
            first = {"problem": f"cannot be imported: it ended its process (exit code {child.process.wait()})"}
        if "problem" in first:
            child.end()
            raise ConfigError(first["problem"], field=self._field, found=repr(self._path), fix=first.get("fix"))
        child.takes = None if first["ready"] is None else frozenset(first["ready"])
        return child


class _Child:
    """The process, and what it says."""

    def __init__(self, path: str, timeout: float, concurrency: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", BOOT, json.dumps(sys.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.takes: frozenset[str] | None = None
        self.replies: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        """What comes from it; None at its end."""
        threading.Thread(target=_listen, args=(self.process.stdout, self.replies), daemon=True).start()
        self.end = weakref.finalize(self, _end, self.process)
        self.send([pickle.dumps((path, timeout, concurrency))])

    def send(self, messages: Sequence[bytes]) -> None:
        """Write without waiting: the process may be slow to read, or gone."""
        threading.Thread(target=_write, args=(self.process.stdin, messages), daemon=True).start()


def _listen(lines: IO[bytes], replies: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    with lines:
        for line in lines:
            replies.put(json.loads(line))
    replies.put(None)


def _write(stream: IO[bytes], messages: Sequence[bytes]) -> None:
    with contextlib.suppress(OSError, ValueError):  # a process that is gone is noticed where its replies are read
        for message in messages:
            stream.write(message)
        stream.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # what it has not read is lost with it
        process.stdin.close()
