"""A table that grows on disk: tables are put behind it one after the other, and no more than one is held in memory.

shelf.add(table)  shelf.add(table)  ...  shelf.close({"order": order})       FOLDER/ids.npy, ends.npy, ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from whet.data.table import ARRAYS, BOUNDS, Table, table_of

EMPTY = table_of(()).arrays


HEADER_BYTES = 128
"""NumPy leaves room in the header of a file for the first dimension to grow."""


class NoRoom(OSError):
    """A file of a growing table cannot be written."""


class GrowingArray:
    """One .npy file of rows that are appended. Raises NoRoom where it cannot be written."""

    def __init__(self, path: Path, like: NDArray[Any]) -> None:
        """Its rows have type and shape of those of `like`."""
        self._dtype, self._row_shape = like.dtype, like.shape[1:]
        self._digest = sha256()
        self.num = 0
        """Rows so far."""
        with writing_rows():
            self._handle: IO[bytes] = path.open("wb")
            self._handle.write(self._header())

    def add(self, rows: NDArray[Any]) -> None:
        content = np.ascontiguousarray(rows, self._dtype).reshape(-1).view(np.uint8)
        with writing_rows():
            self._handle.write(content.data)
        self._digest.update(content.data)
        self.num += len(rows)

    def close(self) -> tuple[str, str]:
        """Write how many there are. Returns the hash of the rows, and that of the file, which `array_hash` finds."""
        with writing_rows(), self._handle as handle:
            handle.seek(0)
            handle.write(self._header())
        rows = self._digest.hexdigest()
        self._digest.update(self._header())
        return rows, self._digest.hexdigest()

    def abandon(self) -> None:
        with suppress(OSError):
            self._handle.close()

    def _header(self) -> bytes:
        shape = (self.num, *self._row_shape)
        described = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        header = BytesIO()
        np.lib.format.write_array_header_1_0(header, described)
        assert header.tell() == HEADER_BYTES, "the header keeps its length"
        return header.getvalue()


@contextmanager
def writing_rows() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NoRoom(error.errno, error.strerror) from error


def array_hash(path: Path) -> str:
    """Hash of a file's rows, then of its header. Raises OSError."""
    with path.open("rb") as handle:
        header = handle.read(HEADER_BYTES)
        digest = sha256()
        while content := handle.read(2**20):
            digest.update(content)
    digest.update(header)
    return digest.hexdigest()


class Shelf:
    """The growing table. Raises NoRoom where the folder cannot be written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, int] = {}
        """The files that rows came from, and their numbers."""
        self.grouped = False
        self._ends = dict.fromkeys(BOUNDS, 0)
        self._arrays = {name: GrowingArray(folder / f"{name}.npy", getattr(EMPTY, name)) for name in ARRAYS}
        for name in BOUNDS:
            self._arrays[name].add(np.zeros(1, np.int64))

    @property
    def num_rows(self) -> int:
        return self._arrays["lines"].num

    def add(self, table: Table) -> None:
        pictures = self._arrays["digests"].num
        numbers = np.array([self.names.setdefault(name, len(self.names)) for name in table.names], np.int32)
        for name in ARRAYS:
            part = getattr(table.arrays, name)
            if name in BOUNDS:
                self._arrays[name].add(part[1:] + self._ends[name])
                self._ends[name] += int(part[-1])
            elif name == "shown":
                self._arrays[name].add(part + pictures)
            elif name == "files":
                self._arrays[name].add(numbers[part])
            else:
                self._arrays[name].add(part)
        self.grouped = self.grouped or table.grouped

    def close(self, more: Mapping[str, NDArray[Any]]) -> dict[str, tuple[str, str]]:
        """Write the table to its end and more arrays beside it. Returns hashes of each: of its rows, of its file."""
        arrays = dict(self._arrays)
        for name, rows in more.items():
            arrays[name] = GrowingArray(self.folder / f"{name}.npy", rows)
            arrays[name].add(rows)
        return {name: array.close() for name, array in arrays.items()}

    def abandon(self) -> None:
        """Let go of the files; after `close` this does nothing."""
        for array in self._arrays.values():
            array.abandon()
