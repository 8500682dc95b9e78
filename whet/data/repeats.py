"""Which of many rows come again, by a hash and a line of each: 16 bytes a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from whet.schema.records import Origin


@dataclass(slots=True)
class Repeats:
    """Rows in the order of the files."""

    _files: list[tuple[str, int]] = field(default_factory=list)
    """Name of a file, and how many rows follow that are its."""
    _hashes: list[NDArray[np.uint64]] = field(default_factory=list)
    _lines: list[NDArray[np.int64]] = field(default_factory=list)

    def add(self, file: str, hashes: NDArray[np.uint64], lines: NDArray[np.int64]) -> None:
        if not len(lines):
            return
        self._files.append((file, len(lines)))
        self._hashes.append(hashes)
        self._lines.append(lines)

    def found(self) -> Iterator[tuple[Origin, Origin]]:
        """Every row that came before, in order, with the place where it stood first."""
        if not self._files:
            return
        hashes, lines = np.concatenate(self._hashes), np.concatenate(self._lines)
        order = np.argsort(hashes, kind="stable")
        again = np.concatenate([[False], hashes[order[1:]] == hashes[order[:-1]]])
        first = np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))
        places, firsts = order[again], order[first[again]]
        by_place = np.argsort(places)
        bounds = np.cumsum([0, *(num for _, num in self._files)])

        def origins(rows: NDArray[np.int64]) -> Iterator[Origin]:
            files = np.searchsorted(bounds, rows, "right") - 1
            for file, line in zip(files.tolist(), lines[rows].tolist(), strict=True):
                yield Origin(file=self._files[file][0], line=line)

        yield from zip(origins(places[by_place]), origins(firsts[by_place]), strict=True)
