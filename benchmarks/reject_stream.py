"""Many prompts through `whet reject` against a stub server: seconds, answers a second, peak memory.

    python -m benchmarks.reject_stream --prompts 100000 --group-size 4
    python -m benchmarks.reject_stream --prompts 500 --kills 10          # killed on the way, and gone on
    python -m benchmarks.reject_stream --in-process                      # a function answers, no server

The stub speaks OpenAI's chat API, answers at once, right half of the time, and counts what it answered. With `--kills`
the work is killed (SIGKILL) at as many random moments, started again each time, and what comes of it is compared with a
run nobody touched.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.stub_server import Stub

RECORDS = ("groups.jsonl", "accepted.jsonl", "rejected.jsonl", "preference.jsonl", "solved.jsonl", "unsolved.jsonl",
           "reject.json", "reject_samples.jsonl")  # fmt: skip
POLL_SECONDS = 0.02


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.kills and options.in_process:
        parser().error("--kills needs the server, which counts what it answered")
    with tempfile.TemporaryDirectory(prefix="whet-reject-", dir=options.folder) as name, Stub() as stub:
        folder = Path(name)
        write_prompts(folder / "prompts.jsonl", options.prompts)
        total = options.prompts * options.group_size
        print(f"{options.prompts:,} prompts x {options.group_size}; {describe_machine()['processor']}")
        seconds, peak = work(options, folder, "whole", stub)
        pace = f"{total:,} answers in {seconds:.0f} s, {total / seconds:,.0f} a second"
        print(f"{pace}; peak memory {peak / 2**20:,.0f} MB")
        if not options.kills:
            return 0
        return killed(options, folder, stub)


def killed(options: argparse.Namespace, folder: Path, stub: Stub) -> int:
    """Kill and go on; returns 1 where anything was lost, repeated or different."""
    total, draw = options.prompts * options.group_size, random.Random(options.seed)
    store = folder / "killed" / "stages" / "01-reject" / "rollouts.jsonl"
    stored = set[str]()
    repeated = 0
    for kill in range(options.kills + 1):
        stub.forget()
        aim = total if kill == options.kills else (kill + draw.random()) * total / options.kills
        process = start(options, folder, "killed", stub)
        while process.poll() is None and (kill == options.kills or stub.answered + len(stored) < aim):
            time.sleep(POLL_SECONDS)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        repeated += len(stored & stub.asked)
        stored = keys_in(store)
    whole, broken = (folder / run / "stages" / "01-reject" for run in ("whole", "killed"))
    different = [name for name in RECORDS if (whole / name).read_bytes() != (broken / name).read_bytes()]
    lost = len(keys_in(whole / "rollouts.jsonl") - keys_in(store))
    print(f"killed {options.kills} times: {lost} lost, {repeated} asked again that were stored, "
          f"different files: {', '.join(different) or 'none'}")  # fmt: skip
    return int(bool(lost or repeated or different))


def keys_in(store: Path) -> set[str]:
    """Everything that is stored, in its turn or before it, by the text that the stub makes of a request."""
    found = set[str]()
    for path in (store, store.with_name("rollouts.early.jsonl")):
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        found |= {json.loads(line)["text"] for line in lines}
    return found


def work(options: argparse.Namespace, folder: Path, run: str, stub: Stub) -> tuple[float, int]:
    """Seconds and peak resident bytes of a whole run."""
    begun, peak = time.perf_counter(), 0
    process = start(options, folder, run, stub)
    while process.poll() is None:
        peak = max(peak, resident_peak(process.pid))
        time.sleep(POLL_SECONDS)
    if process.returncode:
        raise SystemExit(f"whet ended with {process.returncode}")
    return time.perf_counter() - begun, peak


def resident_peak(pid: int) -> int:
    """Most resident memory the process has had, in bytes; 0 once it is gone. Linux."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024


def start(options: argparse.Namespace, folder: Path, run: str, stub: Stub) -> subprocess.Popen[bytes]:
    rollout: dict[str, object] = {"group_size": options.group_size, "max_new_tokens": 64}
    if not options.in_process:
        rollout["engine"] = {"type": "http", "urls": [stub.url], "model": "stub", "concurrency": options.concurrency}
    keys = [
        f"run={folder / run}", "model.path=whet/demo/base", "model.device=cpu", "reward.type=numeric",
        f"data.files={folder / 'prompts.jsonl'}", f"rollout={json.dumps(rollout)}",
        *(["functions.generate=benchmarks.stub_server:generate"] if options.in_process else []),
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "whet", "reject", *keys], cwd=Path(__file__).parents[1], env=os.environ,
        stdout=subprocess.DEVNULL, stderr=sys.stderr if options.verbose else subprocess.DEVNULL,
    )  # fmt: skip


def write_prompts(path: Path, num: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for n in range(num):
            file.write(json.dumps({"prompt": f"How much is {n} plus {n}?", "reference": str(2 * n)}) + "\n")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--in-process", action="store_true", help="a function answers instead of the server")
    parser.add_argument("--kills", type=int, default=0, help="of the work; with the server only, which counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the runs lie while they are measured")
    parser.add_argument("--verbose", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
