"""A file's hash is remembered, and every edit noticed."""

from __future__ import annotations

import os
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from whet.data import digest
from whet.data.digest import file_hash


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were gone through."""
    monkeypatch.setenv("WHET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digest, "WORTH_BYTES", 1)
    found: list[str] = []
    whole = digest.file_digest

    def counted(handle: Any, name: str) -> Any:
        found.append(Path(handle.name).name)
        return whole(handle, name)

    monkeypatch.setattr(digest, "file_digest", counted)
    return found


def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour goes by."""
    now = time.time()
    monkeypatch.setattr(digest.time, "time", lambda: now + 3600)


def test_a_file_is_read_once(tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"rows")
    settled(monkeypatch)
    assert file_hash(path) == file_hash(path) == sha256(b"rows").hexdigest()
    assert read == ["a.jsonl"]
    path.touch()
    assert file_hash(path) == sha256(b"rows").hexdigest() and len(read) == 2


def test_an_edit_that_keeps_size_and_time_is_noticed(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"rows")
    stat = path.stat()
    settled(monkeypatch)
    file_hash(path)
    path.write_bytes(b"ROWS")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert file_hash(path) == sha256(b"ROWS").hexdigest()
    other = tmp_path / "b.jsonl"
    other.write_bytes(b"Rows")
    other.replace(path)
    assert file_hash(path) == sha256(b"Rows").hexdigest()


def test_a_file_that_has_just_changed_is_read_again(tmp_path: Path, read: list[str]) -> None:
    """A clock counts in steps: within one of them a second edit would not show."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"rows")
    assert file_hash(path) == file_hash(path)
    assert len(read) == 2


def test_a_memory_that_cannot_be_used_is_none(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"rows")
    settled(monkeypatch)
    file_hash(path)
    (memory,) = (tmp_path / "cache" / "files").iterdir()
    for broken in (b"", b"{}", b"[1]", b"\xff"):
        memory.write_bytes(broken)
        assert file_hash(path) == sha256(b"rows").hexdigest()
    assert len(read) == 5
    monkeypatch.setenv("WHET_CACHE", str(path))
    assert file_hash(path) == sha256(b"rows").hexdigest()
