"""A server as a child: it answers, it is shown why it does not, and it never outlives whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from whet.errors import RunError
from whet.rollout.process import ServerProcess, answers


def web(port: int) -> Sequence[str]:
    return [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def test_started_and_ended(tmp_path: Path) -> None:
    server = ServerProcess(web, {}, tmp_path / "logs" / "server.log")
    server.wait("/", 30)
    assert answers(server.url + "/")
    server.close()
    assert not answers(server.url + "/")
    assert "GET /" in (tmp_path / "logs" / "server.log").read_text()


def test_one_that_dies_shows_the_end_of_its_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [sys.executable, "-c", "import sys; print('no memory left'); sys.exit(3)"]
    server = ServerProcess(lambda port: words, {}, tmp_path / "server.log")
    with pytest.raises(RunError, match=r"server\.log: the server did not come up \(found it ended with status 3\)"):
        server.wait("/", 30)
    assert "no memory left" in capfd.readouterr().err


def test_one_that_never_answers_is_ended(tmp_path: Path) -> None:
    words = [sys.executable, "-c", f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()));"
             "print(1, flush=True); time.sleep(100)"]  # fmt: skip
    server = ServerProcess(lambda port: words, {}, tmp_path / "server.log")
    with pytest.raises(RunError, match="no answer in 2 s"):
        server.wait("/", 2)
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
def test_it_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    """Also what the server itself has started."""
    child = "import os, subprocess, sys, time; "
    child += "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']); "
    child += f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{p.pid}}\\n'); time.sleep(99)"
    owner = subprocess.Popen([sys.executable, "-c", textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from whet.rollout.process import ServerProcess
        ServerProcess(lambda port: [sys.executable, "-c", {child!r}], {{}}, Path({str(tmp_path / "log")!r}))
        time.sleep(99)
    """)])  # fmt: skip
    pids = tmp_path / "pids"
    deadline = time.monotonic() + 30
    while not (pids.exists() and pids.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.05)
    started = [int(pid) for pid in pids.read_text().split()]
    assert all(alive(pid) for pid in started)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    assert all(gone(pid) for pid in started)
