"""Many prompts through `whet reject` against a stub server: seconds, answers a second, peak memory.

    python -m benchmarks.reject_stream --prompts 100000 --group-size 4
    python -m benchmarks.reject_stream --prompts 500 --kills 10          # killed on the way, and gone on
    python -m benchmarks.reject_stream --in-process                      # a function answers, no server
    python -m benchmarks.reject_stream --prompts 500 --kills 10 --python /opt/vllm/bin/python       # a real server

The stub speaks OpenAI's chat API, answers at once, right half of the time, and counts what it answered; with `--python`
it passes every request on to a vLLM server. With `--kills` the work is killed (SIGKILL) at as many random moments,
started again each time, and what comes of it is compared with a run nobody touched. A real server's answers depend on
what it answers beside them, so there the samples are compared, and not the files.
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
from contextlib import ExitStack, closing
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.stub_server import Stub
from whet.config.engine import Vllm
from whet.demo.plan import BASE
from whet.rollout.vllm import BASE as SERVED
from whet.rollout.vllm import Checkpoint, VllmEngine
from whet.rollout.wire import seed_of
from whet.schema.rollouts import Request, Sampling

RECORDS = ("groups.jsonl", "accepted.jsonl", "rejected.jsonl", "preference.jsonl", "solved.jsonl", "unsolved.jsonl",
           "reject.json", "reject_samples.jsonl")  # fmt: skip
POLL_SECONDS = 0.02
SEED = 42


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.in_process and (options.kills or options.python):
        parser().error("--in-process goes without a server, which --kills and --python need")
    with tempfile.TemporaryDirectory(prefix="whet-reject-", dir=options.folder) as name, ExitStack() as stack:
        folder = Path(name)
        server = stack.enter_context(closing(real_server(options, folder))) if options.python else None
        stub = stack.enter_context(Stub(before=(server.root, server.headers) if server is not None else None))
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
    repeated = answered = 0
    for kill in range(options.kills + 1):
        stub.forget()
        aim = total if kill == options.kills else (kill + draw.random()) * total / options.kills
        process = start(options, folder, "killed", stub)
        while process.poll() is None and (kill == options.kills or stub.answered + len(stored) < aim):
            time.sleep(POLL_SECONDS)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        answered += stub.answered
        repeated += len({seed_of(sample(key)) for key in stored} & set(stub.seeds))
        stored = set(keys_in(store))
    whole, broken = (folder / run / "stages" / "01-reject" for run in ("whole", "killed"))
    compared = () if options.python else RECORDS
    different = [name for name in compared if (whole / name).read_bytes() != (broken / name).read_bytes()]
    keys = keys_in(store)
    lost, twice = len(set(keys_in(whole / "rollouts.jsonl")) - set(keys)), len(keys) - len(set(keys))
    print(f"killed {options.kills} times: {lost} lost, {twice} stored twice, {repeated} asked again that were stored, "
          f"{answered - total} answers on their way to a process that was killed, "
          f"different files: {', '.join(different) or 'none' if compared else 'not compared'}")  # fmt: skip
    return int(bool(lost or twice or repeated or different))


def keys_in(store: Path) -> list[str]:
    """The keys of everything that is stored, in its turn or before it."""
    found: list[str] = []
    for path in (store, store.with_name("rollouts.early.jsonl")):
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        found += [json.loads(line)["key"] for line in lines]
    return found


def sample(key: str) -> Request:
    return Request(key=key, prompt_ids=(), sampling=Sampling(max_new_tokens=1), seed=SEED)


def real_server(options: argparse.Namespace, folder: Path) -> VllmEngine:
    config = Vllm(python=options.python, concurrency=options.concurrency, max_length=512)
    return VllmEngine(config, Checkpoint(path=str(BASE), adapter=None, end_ids=(), folder=folder))


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
    rollout: dict[str, object] = {"group_size": options.group_size, "max_new_tokens": 64, "seed": SEED}
    if not options.in_process:
        api = {"api": "completions"} if options.python else {}  # by ids: a stub could not read them
        engine = {"type": "http", "urls": [stub.url], "model": SERVED, "concurrency": options.concurrency}
        rollout["engine"] = engine | api
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
    parser.add_argument("--python", help="interpreter of an environment with vLLM, which answers instead of the stub")
    parser.add_argument("--in-process", action="store_true", help="a function answers instead of the server")
    parser.add_argument("--kills", type=int, default=0, help="of the work; with the server only, which counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the runs lie while they are measured")
    parser.add_argument("--verbose", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
