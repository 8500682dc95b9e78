"""The thread that watches: what it does when a rank is silent, and when it has been away itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from torch.distributed import HashStore

from whet.ranks.life import Signs
from whet.ranks.pulse import pulse
from whet.ranks.watchdog import Watchdog


class Left(Exception):
    """The process would have ended."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that is set by hand."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def watched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Watchdog, Signs]:
    """The watchdog of rank 0 with 10 seconds of patience, and how rank 1 sends signs."""
    store = HashStore()
    dog = Watchdog(Signs(store, 0, 2, "here", 1), rank=0, world=2, limit=10, stacks=folder)

    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(dog, "_leave", leave)
    return dog, Signs(store, 1, 2, "there", 2)


def test_a_silent_rank_ends_the_run_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    dog, other = watched(tmp_path, monkeypatch)
    for _ in range(5):
        pulse.beats += 1
        other.send()
        dog._look()
        clock[0] += 2
    other_pulse = pulse.beats
    with pytest.raises(Left, match="2"):
        for _ in range(8):  # rank 1 is still there, but its work stands still
            pulse.beats = other_pulse
            other.send()
            pulse.beats += 1 + int(clock[0])
            dog._look()
            clock[0] += 2
    assert capsys.readouterr().err.startswith("error: rank 1 has given no sign of life for 10 s")
    assert "test_watchdog" in (tmp_path / "rank-0.txt").read_text(), "where this process was"
    assert other.stacks_are_wanted()


def test_a_rank_that_is_asked_writes_its_stack_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank has found who hangs: this one says where it is before the other ends."""
    dog, other = watched(tmp_path, monkeypatch)
    other.send()
    dog._look()
    assert not list(tmp_path.iterdir())
    other.ask_for_stacks()
    dog._look()
    stack = tmp_path / "rank-0.txt"
    assert "test_watchdog" in stack.read_text()
    stack.unlink()
    dog._look()
    assert not stack.exists()


def test_who_stood_still_blames_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole job was stopped for an hour and goes on."""
    dog, other = watched(tmp_path, monkeypatch)
    other.send()
    dog._look()
    clock[0] += 3600
    dog._look()
    assert capsys.readouterr().err == ""
