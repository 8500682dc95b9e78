"""The lock of a run directory: held by one, seen by anybody, in nobody's way."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from whet.errors import RunError
from whet.runs.layout import RunPaths
from whet.runs.lock import is_held, only_one_process


def test_one_holds_it_and_anybody_sees(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "run")
    assert is_held(paths) is False and not paths.root.exists(), "looking makes nothing"
    with only_one_process(paths):
        assert is_held(paths) is True
        with pytest.raises(RunError, match="another process is working in this run directory"), only_one_process(paths):
            pass
        assert is_held(paths) is True
    assert is_held(paths) is False


def test_who_looks_is_in_nobodys_way(tmp_path: Path) -> None:
    """A start while somebody looks waits for the moment that takes."""
    paths = RunPaths(tmp_path)
    paths.lock.touch()
    looking = paths.lock.open()
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert is_held(paths) is False, "two may look"

    def look_away() -> None:
        time.sleep(0.1)
        looking.close()

    thread = threading.Thread(target=look_away)
    thread.start()
    with only_one_process(paths):
        assert looking.closed
    thread.join()


def test_a_lock_that_is_only_to_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = RunPaths(tmp_path)
    paths.lock.touch(mode=0o444)
    tmp_path.chmod(0o555)
    before = paths.lock.stat().st_mtime_ns
    assert is_held(paths) is False and paths.lock.stat().st_mtime_ns == before
    tmp_path.chmod(0o755)
    monkeypatch.setattr(Path, "open", _refuse)
    assert is_held(paths) is None


def _refuse(*_: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_warned_of(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    paths = RunPaths(tmp_path / "run")
    with only_one_process(paths):
        assert is_held(paths) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {paths.root}: cannot be locked ({os.strerror(code)}); see to it")
