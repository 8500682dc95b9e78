"""A server as a child of whet: started on a free port, waited for, and ended with whet however whet ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from whet.errors import RunError
from whet.rollout import keeper
from whet.runs.files import writing

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens URLs without the proxies of the environment."""
LOG_LINES = 20
"""Lines of the log that are shown where a server does not come up."""


class ServerProcess:
    """`command(port)` is what to run. Its output goes to the log."""

    def __init__(
        self, command: Callable[[int], Sequence[str]], environment: Mapping[str, str], log: Path, *,
        port: int | None = None,
    ) -> None:  # fmt: skip
        """Without a `port`, on one that is free."""
        self.port, self._log = port if port is not None else free_port(), log
        with writing(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as output:
                self._keeper = subprocess.Popen(
                    [sys.executable, str(keeper.__file__), *command(self.port)],
                    stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
                    env={**os.environ, **environment}, start_new_session=True,
                )  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ended(self) -> bool:
        return self._keeper.poll() is not None

    def wait(self, path: str, seconds: float) -> None:
        """Until `path` answers. Raises RunError where it ends or takes too long, after showing the end of its log."""
        deadline = time.monotonic() + seconds
        while not answers(self.url + path):
            status = self._keeper.poll()
            if status is not None or time.monotonic() > deadline:
                self.close()
                how = f"it ended with status {status}" if status is not None else f"no answer in {seconds:g} s"
                print("".join(f"  {line}\n" for line in self._tail()), file=sys.stderr, end="")
                raise RunError(
                    "the server did not come up", file=str(self._log), found=how, fix="the end of its log stands above"
                )
            time.sleep(0.2)

    def close(self) -> None:
        """End it and everything it started."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait(timeout=keeper.GRACE_SECONDS + 15)

    def _tail(self) -> list[str]:
        return self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def answers(url: str) -> bool:
    try:
        with DIRECT.open(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
