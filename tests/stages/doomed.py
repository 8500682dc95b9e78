"""Runs a plan in a process that kills itself, as `kill -9` would, at an exact moment.

Python reports every file operation to audit hooks before it is done. The process counts those that change something
below the run directory, the lines of metrics.jsonl and the ticks of every progress line, and sends itself SIGKILL at
the n-th: nothing is flushed, closed or cleaned up.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import whet.rollout.build
import whet.stages.offline
import whet.stages.prepare
from whet.config.load import load_plan
from whet.rollout.native import NativeEngine
from whet.runs.sinks import MetricsFile, Progress
from whet.schema.rollouts import Completion, Request
from whet.stages.pipeline import run_plan

__all__ = ["run_and_die", "whet"]

# Index of the argument that names the path which appears, disappears or changes.
CHANGES = {
    "os.rename": 1, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0, "shutil.copyfile": 1,
    "shutil.rmtree": 0,
}  # fmt: skip


class Judging(NativeEngine):
    """The real engine, but a judgement becomes a score made of its tokens: random weights never write one."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for completion in super().generate(requests):
            text = f"Score: {sum(completion.ids) % 6}"
            yield replace(completion, text=text, finish_reason="stop") if "/judge" in completion.key else completion


class Doom:
    """Counts what happens that has `word` in it, and ends the process at the `number`-th."""

    def __init__(self, root: str, word: str, number: int) -> None:
        self.root, self.word, self.number, self.seen = root, word, number, list[str]()

    def happens(self, what: str) -> None:
        if self.word not in what:
            return
        self.seen.append(what)
        if len(self.seen) == self.number:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in CHANGES:
            path = arguments[CHANGES[event]]
        else:
            return
        if not isinstance(path, str | os.PathLike):
            return
        name = os.fspath(path)
        # Inside rmtree names are relative to an open directory; nothing else here removes by a relative name.
        if name.startswith(self.root) or (event in ("os.remove", "os.rmdir") and not os.path.isabs(name)):
            self.happens(f"{event} {name.removeprefix(self.root)}")


def run_and_die(plan: Mapping[str, Any], word: str, number: int, log: str | None = None) -> None:
    """Run a plan and die at the `number`-th (from 1) event with `word` in it; 0 lives on.

    With `log`, the events are written there at the end, one per line.
    """
    parsed = load_plan(plan)
    doom = Doom(parsed.run, word, number)
    update, write = Progress.update, MetricsFile.write

    def ticking(self: Progress, n: int = 1, note: str = "") -> None:
        update(self, n, note)
        doom.happens(f"tick {self.title}")

    def writing(self: MetricsFile, row: Mapping[str, Any]) -> None:
        write(self, row)
        doom.happens(f"line {self.path.parent.name}")

    Progress.update, MetricsFile.write = ticking, writing  # type: ignore[method-assign]
    whet.rollout.build.NativeEngine = Judging  # type: ignore[misc]
    sys.addaudithook(doom.audit)
    run_plan(parsed)
    if log is not None:
        doom.word = "\0"
        Path(log).write_text("\n".join(doom.seen), encoding="utf-8")
