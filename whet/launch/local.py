"""`launch.processes=N`: the same command as N ranks on this machine, by torch's own elastic multiprocessing.

The ranks find each other as under torchrun, at a store that this process holds. Each says itself what went wrong with
it; a rank that was ended by a signal cannot, and is named here.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, start_processes
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from whet.ranks.life import code_told
from whet.ranks.watchdog import FAILED, GO_ON, LAUNCHED
from whet.runs.environment import num_cores

HOST = "127.0.0.1"
POLL_SECONDS = 0.2
CLOSE_SECONDS = 10
"""Seconds a rank has to end before it is killed."""


def start_ranks(words: Sequence[str], processes: int) -> int:
    """Run `whet WORDS` as that many ranks; returns the exit code."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it would say is said below
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    ranks = start_processes(
        "whet",
        entrypoint=sys.executable,
        args=dict.fromkeys(range(processes), ("-m", "whet", *words)),
        envs={rank: environment(rank, processes, store.port) for rank in range(processes)},
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    try:
        result = ranks.wait(period=POLL_SECONDS)
    except (SignalException, KeyboardInterrupt) as error:
        number = error.sigval if isinstance(error, SignalException) else signal.SIGINT
        ranks.close(number, CLOSE_SECONDS)
        return 128 + number
    finally:
        ranks.close(signal.SIGTERM, CLOSE_SECONDS)
    return exit_code(result.failures, code_told(store)) if result is not None else 0


def environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun would set, and as many threads as there are cores for each rank."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, num_cores() // processes))
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": HOST, "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": threads, LAUNCHED: "1",
    }  # fmt: skip


def exit_code(failures: Mapping[int, ProcessFailure], told: int | None = None) -> int:
    """The code of the ranks that failed first; those ended because of them do not count. Names ranks that a signal
    ended, unless a rank has `told` why the run ends, and with which code: libraries abort where a peer is gone."""
    if not failures:
        return 0
    if told is not None:
        return told
    first = min(failure.timestamp for failure in failures.values())
    early = {rank: failure.exitcode for rank, failure in failures.items() if failure.timestamp <= first + 1}
    said = [code for code in early.values() if code > 0]
    if said:
        return said[0]
    killed = {rank: code for rank, code in early.items() if code != -signal.SIGTERM} or early
    for rank, code in sorted(killed.items()):
        name = signal.Signals(-code).name
        print(f"error: rank {rank} was ended by {name}; {GO_ON}", file=sys.stderr, flush=True)
    return FAILED
