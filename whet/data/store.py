"""Rendered rows on disk, under a key that says what they were made from, so that they are made once.

    $WHET_CACHE/tokens/KEY/ids.npy, ends.npy, ...      the arrays, opened by mapping them into memory
    $WHET_CACHE/tokens/KEY/seen_stamps.npy, ...        how the files of their pictures were
    $WHET_CACHE/tokens/KEY/about.json                  a hash of each, and what became of the records

An entry appears under its name whole. One that cannot be read, or whose bytes are not those that were written, counts
as none, and so does one of pictures whose files have changed since. Bytes are hashed as they are written; files that
have size, inode and times they had then are taken for unchanged, others are hashed again. Nothing here is needed: where
the folder cannot be written, rows lie in a temporary file that no name leads to.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from whet.data.cache import cache_folder
from whet.data.digest import signature_of
from whet.data.picture_files import signature
from whet.data.shelf import NoRoom, Shelf, array_hash, writing_rows
from whet.data.table import ARRAYS, Arrays, Table, TokenRows, digest_of
from whet.ranks.pulse import beat

BROKEN = (OSError, ValueError, KeyError, TypeError)
"""What opening an entry raises that is not whole."""
WAIT_SECONDS = 0.2
"""Between two looks whether another process has made the rows."""
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

    @classmethod
    def joined(cls, parts: Sequence[Seen], folders: tuple[str, ...]) -> Seen:
        """All files of the parts, each as it was when it was first seen."""
        stamps: dict[str, NDArray[np.int64]] = {}
        for part in parts:
            for file, stamp in zip(part._files(), part.stamps, strict=True):
                stamps.setdefault(file, stamp)
        names = list(map(os.fsencode, stamps))
        ends = np.cumsum([0, *map(len, names)], dtype=np.int64)
        found = np.array([*stamps.values()], np.int64).reshape(-1, 2)
        return cls(folders, np.frombuffer(b"".join(names), np.uint8), ends, found)

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
FILES = (*ARRAYS, "order", *(f"seen_{name}" for name in SEEN))
"""Arrays of an entry, each in its file."""


def load(key: str, folders: tuple[str, ...] = ()) -> Tokenised | None:
    """What was kept under a key, or None where that is nothing, or no longer what it was.

    `folders` are where relative paths of pictures start from.
    """
    folder = _entry(key)
    if folder is None:
        return None
    try:
        return _open(folder, folders)
    except BROKEN:
        return None


@contextmanager
def only_maker(key: str) -> Iterator[None]:
    """Be the only process of this machine that makes the entry: another waits here, and then finds it made.

    Where locks cannot be had two processes may make it, and either's entry is sound.
    """
    folder = _entry(key)
    handle = None if folder is None else _locked(folder.with_name(f".{key[:16]}.lock"))
    if handle is None:
        yield
        return
    assert folder is not None
    try:
        for path in folder.parent.glob(f".{key[:16]}-*"):  # of a process that was killed: no other is at work here
            shutil.rmtree(path, ignore_errors=True)
        yield
    finally:
        with suppress(OSError):
            folder.with_name(f".{key[:16]}.lock").unlink()
        handle.close()


@contextmanager
def workplace(key: str | None) -> Iterator[Path]:
    """An empty folder to make an entry in, beside where it will stand; without a key, or a cache, a temporary one.

    It is removed at the end. What is mapped from it stays readable. Raises NoRoom where there can be none.
    """
    entry = None if key is None else _entry(key)
    with writing_rows():
        if entry is None:
            folder = Path(tempfile.mkdtemp(prefix="whet-tokens-"))
        else:
            entry.parent.mkdir(parents=True, exist_ok=True)
            _sweep(entry.parent)
            folder = entry.with_name(f".{entry.name[:16]}-{os.getpid()}-{time.monotonic_ns()}")
            folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def finish(
    shelf: Shelf, order: NDArray[np.int64], num_train: int, account: Mapping[str, Any], summary: str,
    seen: Seen = NOTHING,
) -> Tokenised:  # fmt: skip
    """Write a table to its end with all that is known of it, and open it. Raises NoRoom.

    `order` are places in the table: first those of the rows to train on. `seen` are the pictures' files as they were
    before they were read.
    """
    hashes = shelf.close({"order": order} | {f"seen_{name}": getattr(seen, name) for name in SEEN})
    arrays = {name: np.load(shelf.folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    known = {name: rows for name, (rows, _) in hashes.items()}
    about = {
        "arrays": {name: [file, signature_of(shelf.folder / f"{name}.npy")] for name, (_, file) in hashes.items()},
        "digest": digest_of(Arrays(**arrays), order, known),
        "names": list(shelf.names),
        "grouped": shelf.grouped,
        "num_train": num_train,
        "account": account,
        "summary": summary,
        "folders": seen.folders,
    }
    text = json.dumps(about)
    with writing_rows():
        path = shelf.folder / "about.json"
        path.write_text(f"{sha256(text.encode()).hexdigest()}\n{text}\n", encoding="utf-8")
    return replace(_open(shelf.folder, seen.folders), cached=False)


def publish(workplace: Path, key: str, folders: tuple[str, ...] = ()) -> None:
    """Give a finished entry its name, where there is a cache to keep it in. Raises NoRoom."""
    entry = _entry(key)
    if entry is not None:
        with writing_rows():
            _publish(workplace, entry, folders)


def say_unwritable(error: NoRoom) -> None:
    """Once a process: why rows are not kept."""
    folder = cache_folder()
    place = "a folder" if folder is None else folder / "tokens"
    _say_once(f"token cache: cannot write to {place} ({error.strerror or error}); going on without it")


def _entry(key: str) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "tokens" / key


def _locked(path: Path) -> IO[str] | None:
    """The file, held by this process alone; None where that cannot be."""
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = path.open("w")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _say_once("token cache: another process makes the same rows; waiting for it")
                beat("waiting for rows that another process makes")
                handle.close()
                time.sleep(WAIT_SECONDS)
                continue
            if path.exists() and os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                return handle
            handle.close()  # whoever held it has removed it
    except (ImportError, OSError):
        return None


def _open(folder: Path, folders: tuple[str, ...]) -> Tokenised:
    """Raises one of BROKEN where the entry is not whole, or its pictures are others now."""
    digest, _, text = (folder / "about.json").read_text(encoding="utf-8").rstrip("\n").partition("\n")
    if sha256(text.encode()).hexdigest() != digest:
        raise ValueError("about.json is not what was written")
    about = json.loads(text)
    for name in FILES:
        path, (known, signature) = folder / f"{name}.npy", about["arrays"][name]
        # A file that has not been touched is not read again: it may be many gigabytes.
        if list(signature_of(path)) != signature and array_hash(path) != known:
            raise ValueError(f"{name} is not what was written")
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in FILES}
    order = arrays.pop("order")
    if not Seen(tuple(about["folders"]), *(arrays.pop(f"seen_{name}") for name in SEEN)).stands(folders):
        raise ValueError("pictures have changed")
    table = Table(arrays=Arrays(**arrays), names=tuple(about["names"]), grouped=about["grouped"])
    return Tokenised(
        rows=TokenRows(table, order, about["digest"]),
        num_train=about["num_train"],
        account=about["account"],
        summary=about["summary"],
        cached=True,
    )


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
