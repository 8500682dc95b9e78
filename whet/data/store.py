"""Rendered rows on disk, under a key that says what they were made from, so that they are made once.

    $WHET_CACHE/tokens/KEY/ids.npy, ends.npy, ...      the arrays, opened by mapping them into memory
    $WHET_CACHE/tokens/KEY/about.json                  a hash of each, and what became of the records

An entry appears under its name whole. One that cannot be read, or whose bytes are not those that were written, counts
as none. Nothing here is needed: where the folder cannot be written, rows stay in memory.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np

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


def cache_folder() -> Path | None:
    """`$WHET_CACHE`, else ~/.cache/whet; None where there is no home."""
    try:
        return Path(os.environ.get("WHET_CACHE") or "~/.cache/whet").expanduser()
    except RuntimeError:
        return None


def load(key: str) -> Tokenised | None:
    """What was saved under a key, or None where that is nothing, or no longer what it was."""
    folder = _entry(key)
    if folder is None:
        return None
    try:
        return _open(folder)
    except BROKEN:
        return None


def save(key: str, table: Table, made: Tokenised) -> Tokenised:
    """Write an entry; returns it opened from there, or `made` itself after saying once why it could not be kept."""
    folder = _entry(key)
    if folder is None:
        return made
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        temporary = folder.with_name(f".{key[:16]}-{os.getpid()}-{time.monotonic_ns()}")
        temporary.mkdir()
        _write(temporary, table, made)
        kept = _open(temporary)  # a mapped file stays readable when its folder is renamed, or removed
        _publish(temporary, folder)
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


def _write(folder: Path, table: Table, made: Tokenised) -> None:
    hashes = {}
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(table.arrays, name))
        hashes[name] = _hash(folder / f"{name}.npy")
    about = {
        "arrays": hashes,
        "names": table.names,
        "grouped": table.grouped,
        "num_train": made.num_train,
        "account": made.account,
        "summary": made.summary,
    }
    text = json.dumps(about, ensure_ascii=False)
    (folder / "about.json").write_text(f"{sha256(text.encode()).hexdigest()}\n{text}\n", encoding="utf-8")


def _open(folder: Path) -> Tokenised:
    """Raises one of BROKEN where the entry is not whole."""
    digest, _, text = (folder / "about.json").read_text(encoding="utf-8").rstrip("\n").partition("\n")
    if sha256(text.encode()).hexdigest() != digest:
        raise ValueError("about.json is not what was written")
    about = json.loads(text)
    for name in ARRAYS:
        if _hash(folder / f"{name}.npy") != about["arrays"][name]:
            raise ValueError(f"{name} is not what was written")
    arrays = Arrays(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS})
    table = Table(arrays=arrays, names=tuple(about["names"]), grouped=about["grouped"])
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


def _publish(temporary: Path, folder: Path) -> None:
    """Give an entry its name. Where there is one already, since another process was first, a sound one stays."""
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        try:
            _open(folder)
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
