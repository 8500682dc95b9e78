"""Rendered rows on disk, under a key that says what they were made from, so that they are made once.

    $WHET_CACHE/tokens/KEY/ids.npy, ends.npy, ...      the arrays, opened by mapping them into memory
    $WHET_CACHE/tokens/KEY/seen_stamps.npy, ...        how the files of their pictures were
    $WHET_CACHE/tokens/KEY/about.json                  a hash of each, and what became of the records

An entry appears under its name whole. One that cannot be read, or whose bytes are not those that were written, counts
as none, and so does one of pictures whose files have changed since. Nothing here is needed: where the folder cannot be
written, rows stay in memory.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from hashlib import file_digest, sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.data.cache import cache_folder
from whet.data.picture_files import signature
from whet.data.table import ARRAYS, Arrays, Table, TokenRows

BROKEN = (OSError, ValueError, KeyError, TypeError)
"""What opening an entry raises that is not whole."""
STALE_SECONDS = 24 * 3600
"""After this long an unfinished entry belongs to a process that was killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenised:
    """Rows ready for training, and the account of the records they were made from."""

    rows: TokenRows
    num_train: int
    """The first so many rows are for training, the others are held out."""
    account: Mapping[str, Any]
    """The ledger as data.json has it."""
    summary: str
    """The ledger in a line."""
    cached: bool = False
    """Whether they were made earlier."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """The P files of pictures that rows were made from, as they were. `data:` URLs cannot change, and are none."""

    folders: tuple[str, ...]
    """Where relative paths of pictures were looked for: elsewhere the same rows show others."""
    names: NDArray[np.uint8]
    """Their paths, one after the other."""
    ends: NDArray[np.int64]
    """[P + 1] where each of them begins, and the bytes of all."""
    stamps: NDArray[np.int64]
    """[P, 2] size and time of change (ns); -1 where there was no such file."""

    @classmethod
    def now(cls, sources: Iterable[str], folders: tuple[str, ...]) -> Seen:
        files = [source for source in dict.fromkeys(sources) if not source.startswith("data:")]
        names = list(map(os.fsencode, files))
        ends = np.cumsum([0, *map(len, names)], dtype=np.int64)
        return cls(folders, np.frombuffer(b"".join(names), np.uint8), ends, _stamps(files))

    def stands(self, folders: tuple[str, ...]) -> bool:
        """Whether the same rows would show the same pictures now."""
        return not len(self.stamps) or (folders == self.folders and np.array_equal(_stamps(self._files()), self.stamps))

    def _files(self) -> Iterator[str]:
        for first, end in pairwise(self.ends):
            yield os.fsdecode(self.names[first:end].tobytes())


def _stamps(files: Iterable[str]) -> NDArray[np.int64]:
    """[P, 2] how the files are now."""
    return np.fromiter((number for file in files for number in signature(file) or (-1, -1)), np.int64).reshape(-1, 2)


NOTHING = Seen.now((), ())
SEEN = ("names", "ends", "stamps")
FILES = (*ARRAYS, *(f"seen_{name}" for name in SEEN))
"""Arrays of an entry, each in its file."""


def load(key: str, folders: tuple[str, ...] = ()) -> Tokenised | None:
    """What was saved under a key, or None where that is nothing, or no longer what it was.

    `folders` are where relative paths of pictures start from.
    """
    folder = _entry(key)
    if folder is None:
        return None
    try:
        return _open(folder, folders)
    except BROKEN:
        return None


def save(key: str, table: Table, made: Tokenised, seen: Seen = NOTHING) -> Tokenised:
    """Write an entry; returns it opened from there, or `made` itself after saying once why it could not be kept.

    `seen` are the pictures' files as they were before they were read.
    """
    folder = _entry(key)
    if folder is None:
        return made
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        temporary = folder.with_name(f".{key[:16]}-{os.getpid()}-{time.monotonic_ns()}")
        temporary.mkdir()
        _write(temporary, table, made, seen)
        kept = _open(temporary, seen.folders)  # a mapped file stays readable when its folder is renamed, or removed
        _publish(temporary, folder, seen.folders)
    except OSError as error:
        _say_once(f"token cache: cannot write to {folder.parent} ({error.strerror or error}); going on without it")
        return made
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return replace(kept, cached=False)


def _entry(key: str) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "tokens" / key


def _write(folder: Path, table: Table, made: Tokenised, seen: Seen) -> None:
    arrays = [getattr(table.arrays, name) for name in ARRAYS] + [getattr(seen, name) for name in SEEN]
    hashes = {}
    for name, array in zip(FILES, arrays, strict=True):
        np.save(folder / f"{name}.npy", array)
        hashes[name] = _hash(folder / f"{name}.npy")
    about = {
        "arrays": hashes,
        "names": table.names,
        "grouped": table.grouped,
        "num_train": made.num_train,
        "account": made.account,
        "summary": made.summary,
        "folders": seen.folders,
    }
    text = json.dumps(about)
    (folder / "about.json").write_text(f"{sha256(text.encode()).hexdigest()}\n{text}\n", encoding="utf-8")


def _open(folder: Path, folders: tuple[str, ...]) -> Tokenised:
    """Raises one of BROKEN where the entry is not whole, or its pictures are others now."""
    digest, _, text = (folder / "about.json").read_text(encoding="utf-8").rstrip("\n").partition("\n")
    if sha256(text.encode()).hexdigest() != digest:
        raise ValueError("about.json is not what was written")
    about = json.loads(text)
    for name in FILES:
        if _hash(folder / f"{name}.npy") != about["arrays"][name]:
            raise ValueError(f"{name} is not what was written")
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in FILES}
    if not Seen(tuple(about["folders"]), *(arrays.pop(f"seen_{name}") for name in SEEN)).stands(folders):
        raise ValueError("pictures have changed")
    table = Table(arrays=Arrays(**arrays), names=tuple(about["names"]), grouped=about["grouped"])
    return Tokenised(
        rows=TokenRows(table),
        num_train=about["num_train"],
        account=about["account"],
        summary=about["summary"],
        cached=True,
    )


def _hash(path: Path) -> str:
    with path.open("rb") as handle:
        return file_digest(handle, "sha256").hexdigest()


def _publish(temporary: Path, folder: Path, folders: tuple[str, ...]) -> None:
    """Give an entry its name. Where there is one already, since another process was first, a sound one stays."""
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        try:
            _open(folder, folders)
        except BROKEN:
            broken = temporary.with_name(f"{temporary.name}-broken")
            with suppress(OSError):  # should another process do the same at this moment, either's entry is sound
                folder.rename(broken)
                temporary.rename(folder)
            shutil.rmtree(broken, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left unfinished."""
    for path in folder.glob(".*-*"):
        with suppress(OSError):  # gone by now, or not ours to remove
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


@cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)
