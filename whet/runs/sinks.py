"""Where numbers go while a stage works: a progress line for the person, JSON lines for everything else.

with MetricsFile(paths.metrics) as metrics, Progress("sft", total=200) as progress:
    for step in range(1, 201):
        metrics.write({"step": step, "loss": 2.31})
        progress.update(note="loss 2.31")
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from whet.ranks.pulse import beat
from whet.runs.files import json_line, read_jsonl, write_jsonl, writing

REDRAW_SECONDS = 0.1
LINE_SECONDS = 15.0
"""Seconds between two lines where nobody watches a terminal (a log file, CI)."""
RATE_MEMORY = 20.0
"""Seconds over which the rate is averaged, so that the time left follows a change of pace."""


class Progress:
    """One line that says how far, how fast, and how long it will still take.

    On a terminal it is redrawn in place; elsewhere a plain line appears now and then, and always at the end.
    """

    def __init__(self, title: str, total: int | None, *, done: int = 0, stream: IO[str] | None = None) -> None:
        """`done` units were finished by an earlier process: they count in the share, never in the rate."""
        self.title, self.total, self.done, self.note = title, total, done, ""
        self._stream = stream if stream is not None else sys.stderr
        self._live = self._stream.isatty()
        self._start = self._drawn = self._seen = time.monotonic()
        self._first = self._counted = done
        self._rate: float | None = None

    def __enter__(self) -> Self:
        if self._live:
            self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._measure(time.monotonic())
        self._draw(last=True, failed=kind is not None)

    def update(self, n: int = 1, note: str = "") -> None:
        """Count `n` more units; `note` replaces the words at the end of the line."""
        beat()
        self.done += n
        self.note = note or self.note
        now = time.monotonic()
        if now - self._drawn >= (REDRAW_SECONDS if self._live else LINE_SECONDS):
            self._measure(now)
            self._draw()
            self._drawn = now

    def _measure(self, now: float) -> None:
        """Move the rate towards what was just seen, by the share of its memory that has passed."""
        passed = now - self._seen
        if passed <= 0 or self.done == self._counted:
            return
        latest = (self.done - self._counted) / passed
        keep = math.exp(-passed / RATE_MEMORY) if self._rate is not None else 0.0
        self._rate = keep * (self._rate or 0.0) + (1 - keep) * latest
        self._seen, self._counted = now, self.done

    def _draw(self, *, last: bool = False, failed: bool = False) -> None:
        text = self._finished(failed) if last else self._running()
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r{text[:width]}\x1b[K" + ("\n" if last else ""))
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def _running(self) -> str:
        pieces = [self.title, self._share()]
        if self._rate:
            pieces.append(pace(self._rate))
            if self.total:
                pieces.append(f"{clock((self.total - self.done) / self._rate)} left")
        return "  ".join(filter(None, [*pieces, self.note]))

    def _finished(self, failed: bool) -> str:
        seconds = time.monotonic() - self._start
        rate = pace((self.done - self._first) / seconds) if seconds and self.done > self._first else ""
        took = f"{'stopped after' if failed else 'in'} {clock(seconds)}"
        return "  ".join(filter(None, [self.title, self._share(bar=False), took, rate, self.note]))

    def _share(self, *, bar: bool = True) -> str:
        if not self.total:
            return f"{self.done}"
        part = min(1.0, self.done / self.total)
        drawn = f"{'━' * round(20 * part):╌<20} " if bar and self._live else ""
        return f"{drawn}{self.done}/{self.total} {part:4.0%}"


def clock(seconds: float) -> str:
    """Seconds as people say them.

    >>> clock(9.4), clock(75), clock(3725)
    ('9 s', '1:15', '1:02:05')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def pace(rate: float) -> str:
    """Units a second, or seconds a unit where that reads better.

    >>> pace(12.34), pace(0.25)
    ('12.3/s', '4.0 s each')
    """
    return f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"


class MetricsFile:
    """`metrics.jsonl`: one line per optimiser step or evaluation, on disk as soon as it is written.

    A number that is not finite becomes `null`: JSON has no word for it, and readers draw a gap and raise an alarm.
    """

    def __init__(self, path: Path, *, keeps: bool = True) -> None:
        """Without `keeps` nothing is written: of several ranks one keeps the file."""
        self.path, self._keeps = path, keeps
        self._handle: IO[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, row: Mapping[str, Any]) -> None:
        if not self._keeps:
            return
        with writing(self.path):
            if self._handle is None:
                self._repair()
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._handle = self.path.open("a", encoding="utf-8")
            self._handle.write(json_line({name: _finite(value) for name, value in row.items()}))
            self._handle.flush()

    def truncate_after(self, step: int) -> None:
        """Forget lines of steps later than `step`: a resumed run makes them again."""
        self.close()
        if self._keeps and self.path.exists():
            write_jsonl(self.path, [row for row in read_jsonl(self.path) if row["step"] <= step])

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _repair(self) -> None:
        """Cut off a last line that a kill left unfinished."""
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                with self.path.open("r+b") as handle:
                    handle.truncate(whole)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
