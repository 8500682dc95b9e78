"""What the launcher gives its ranks, and what it makes of how they ended."""

from __future__ import annotations

import signal

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from whet.launch.local import environment, exit_code


def failure(rank: int, code: int, timestamp: int) -> ProcessFailure:
    made = ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file="<none>")
    made.timestamp = timestamp
    return made


def test_ranks_find_each_other_and_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))  # what a batch job may use of them
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    first, second = (environment(rank, 2, 1234) for rank in (0, 1))
    assert (first["RANK"], second["RANK"], second["LOCAL_RANK"]) == ("0", "1", "1")
    assert first["MASTER_PORT"] == second["MASTER_PORT"] == "1234"
    assert first["OMP_NUM_THREADS"] == "4"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment(0, 2, 1)["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("codes", "expected", "said"),
    [
        ({}, 0, ""),
        ({0: 2}, 2, ""),
        ({1: 2, 0: -signal.SIGTERM}, 2, ""),
        ({1: -signal.SIGKILL}, 2, "error: rank 1 was ended by SIGKILL"),
        ({0: -signal.SIGTERM, 1: -signal.SIGKILL}, 2, "error: rank 1 was ended by SIGKILL"),
        ({0: 1}, 1, ""),
    ],
)  # fmt: skip
def test_the_first_to_fail_decides(
    codes: dict[int, int], expected: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code({rank: failure(rank, code, 100) for rank, code in codes.items()}) == expected
    printed = capsys.readouterr().err
    assert printed.startswith(said) and printed.count("\n") == bool(said)


def test_those_ended_because_of_another_do_not_count() -> None:
    assert exit_code({0: failure(0, 1, 110), 1: failure(1, 2, 100)}) == 2


def test_what_a_rank_has_told_stands(capsys: pytest.CaptureFixture[str]) -> None:
    """gloo aborts a rank whose peer has ended: that is no news."""
    assert exit_code({0: failure(0, -signal.SIGABRT, 100), 1: failure(1, 2, 103)}, told=2) == 2
    assert capsys.readouterr().err == ""
