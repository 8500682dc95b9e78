"""Runs a server for as long as whoever started it lives.

    python keeper.py COMMAND...        a program of its own, started with a pipe as standard input

The other end of the pipe belongs to whet. When it closes, because whet ended the server or was itself killed in any
way, the server's whole process group is asked to end, and made to after some seconds. Nothing is imported from whet:
this must be up at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

GRACE_SECONDS = 15.0


def main(command: list[str]) -> int:
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def end_with_parent() -> None:
        while os.read(0, 1024):  # without a buffer, which would be locked when this process ends first
            pass
        end(server)

    threading.Thread(target=end_with_parent, daemon=True).start()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda number, frame: end(server))
    status = server.wait()
    signal_group(server.pid, signal.SIGKILL)  # what it left behind
    return status


def end(server: subprocess.Popen[bytes]) -> None:
    signal_group(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    signal_group(server.pid, signal.SIGKILL)


def signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
