"""Where many rows stood, as runs of lines: every row bad of five million is one run, every second one 16 bytes each."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whet.schema.records import Origin


@dataclass(slots=True)
class Runs:
    """Lines of one file as they came: `lows[i]` to `highs[i]`, both included."""

    lows: array[int] = field(default_factory=lambda: array("q"))
    highs: array[int] = field(default_factory=lambda: array("q"))

    def add(self, low: int, high: int) -> None:
        if self.highs and low in (self.highs[-1], self.highs[-1] + 1):
            self.highs[-1] = max(high, self.highs[-1])
        else:
            self.lows.append(low)
            self.highs.append(high)

    def extend(self, other: Runs) -> None:
        if other.lows:
            self.add(other.lows[0], other.highs[0])
            self.lows += other.lows[1:]
            self.highs += other.highs[1:]


@dataclass(slots=True)
class Lines:
    """Rows by file and line; a row that gave several records counts for each of them, and its line stands once."""

    count: int = 0
    files: dict[str, Runs] = field(default_factory=dict)

    @classmethod
    def of(cls, origins: Iterable[Origin]) -> Lines:
        lines = cls()
        for origin in origins:
            lines.add(origin)
        return lines

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Origin]:
        """Every line once, file by file."""
        for file, runs in self.files.items():
            for low, high in zip(runs.lows, runs.highs, strict=True):
                for line in range(low, high + 1):
                    yield Origin(file=file, line=line)

    def add(self, origin: Origin) -> None:
        self.count += 1
        runs = self.files.get(origin.file)
        if runs is None:
            runs = self.files[origin.file] = Runs()
        runs.add(origin.line, origin.line)

    def merge(self, other: Lines) -> None:
        """Add those of another, which came after."""
        self.count += other.count
        for file, runs in other.files.items():
            self.files.setdefault(file, Runs()).extend(runs)

    def to_json(self) -> dict[str, Any]:
        """Count and lines by file, neighbours joined: `3,7-9`."""
        return {
            "count": self.count,
            "lines": {file: ranges(runs.lows, runs.highs) for file, runs in self.files.items()},
        }


def ranges(lows: Iterable[int], highs: Iterable[int] | None = None) -> str:
    """
    >>> ranges([9, 3, 7, 8])
    '3,7-9'
    """
    starts = np.fromiter(lows, np.int64)
    ends = starts if highs is None else np.fromiter(highs, np.int64)
    if not len(starts):
        return ""
    order = np.argsort(starts, kind="stable")
    starts, reached = starts[order], np.maximum.accumulate(ends[order])
    new = np.concatenate([[True], starts[1:] > reached[:-1] + 1])
    firsts, lasts = starts[new].tolist(), reached[np.concatenate([new[1:], [True]])].tolist()
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in zip(firsts, lasts, strict=True))
