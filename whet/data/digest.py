"""The hash of a file's bytes, remembered while the file stays as it was: 50 GB are not read at every start.

    $WHET_CACHE/files/HASH_OF_PATH.json     the hash, and size, times of change and inode that the file had then

Whoever changes bytes changes one of these: the kernel sets the time of the last change (ctime) itself, so that neither
`touch` nor `cp -p` can hide an edit. Changes too close to the hashing for a clock to tell them apart are not
remembered. Assumed is a clock that is not set back, and a file system that keeps such times.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from hashlib import file_digest, sha256
from pathlib import Path

from whet.data.cache import cache_folder

WORTH_BYTES = 2**24
"""Smaller files are hashed each time, in a hundredth of a second."""
SETTLED_SECONDS = 2.0
"""The coarsest clock of a file system in use (FAT) counts in twos."""

Signature = tuple[int, int, int, int]


def signature_of(path: Path) -> Signature:
    """Size, times of change of its content and of anything (ns), and inode. Raises OSError."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises OSError where it cannot be read."""
    before = signature_of(path)
    memory = _memory(path) if before[0] >= WORTH_BYTES else None
    if memory is not None and (known := _remembered(memory, before)) is not None:
        return known
    with path.open("rb") as handle:
        found = file_digest(handle, "sha256").hexdigest()
    settled = time.time() - max(before[1:3]) / 1e9 > SETTLED_SECONDS
    if memory is not None and settled and signature_of(path) == before:
        _remember(memory, before, found)
    return found


def _memory(path: Path) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "files" / f"{sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"


def _remembered(memory: Path, signature: Signature) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads(memory.read_text(encoding="utf-8"))
        if tuple(about["signature"]) == signature:
            return str(about["sha256"])
    return None


def _remember(memory: Path, signature: Signature, found: str) -> None:
    temporary = memory.with_name(f".{memory.name}.{os.getpid()}")
    with suppress(OSError):  # it is hashed again next time
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"signature": signature, "sha256": found}), encoding="utf-8")
        temporary.replace(memory)
