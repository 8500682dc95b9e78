"""Many rows through `whet data check`, tokenising and the first step of `whet sft` or `whet dpo`: seconds and memory.

    python -m benchmarks.data_scale --rows 5000000
    python -m benchmarks.data_scale --rows 1000000 --kind pairs --folder /tmp/scale      # keeps the files
    python -m benchmarks.data_scale --rows 500000 --only tokenise --rounds 3             # 1 and 2 processes in turn

The rows are made on the spot, some 190 bytes each. Memory is that of the whole tree of processes, polled: the largest
resident set of one process (what the kernel says at its end), the largest sum, and the largest sum in which a page
that several hold counts once (PSS). Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.reject_stream import resident_peak

POLL_SECONDS = 0.5
WORDS = (
    "the", "river", "old", "small", "stone", "garden", "walks", "under", "bright", "seven", "lanterns", "quietly",
    "number", "answer", "blue", "window", "letter", "carries", "morning", "over", "bridge", "wooden", "paper", "train",
    "silver", "slowly", "between", "market", "ship", "winter", "story", "second", "simple",
)  # fmt: skip
PARTS = ("check", "tokenise", "step", "restart")
TOKENISE = """
import json, sys, time
from whet.config.data import Data
from whet.data.tokenise import tokenise
from whet.data.tokens import load_renderer
renderer = load_renderer(sys.argv[2], None)
begun = time.perf_counter()
made = tokenise(Data(files=(sys.argv[1],)), (sys.argv[3],), renderer)
print(json.dumps({"seconds": time.perf_counter() - begun, "rows": len(made.rows), "cached": made.cached}))
"""


@dataclass(slots=True)
class Memory:
    """Peaks in bytes."""

    one: int = 0
    """Of one process."""
    all: int = 0
    """Of all together, shared pages counted for each."""
    shared: int = 0
    """Of all together, a shared page counted once."""

    def look(self, root: int) -> None:
        pids = tree(root)
        self.one = max(self.one, *(resident_peak(pid) for pid in pids))
        self.all = max(self.all, sum(kilobytes(pid, "status", "VmRSS:") for pid in pids) * 1024)
        self.shared = max(self.shared, sum(kilobytes(pid, "smaps_rollup", "Pss:") for pid in pids) * 1024)

    def __str__(self) -> str:
        one, all, shared = (f"{size / 2**30:.2f}" for size in (self.one, self.all, self.shared))
        return f"peak GiB {one} one process, {all} all, {shared} all with shared pages once"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="whet-scale-") as name:
        folder = Path(options.folder or name)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{options.kind}-{options.rows}.jsonl"
        if not file.exists():
            write_rows(file, options.rows, options.kind)
        options.model = options.model or build(folder / "model", file)
        print(f"{options.rows:,} {options.kind}, {file.stat().st_size / 1e9:.2f} GB; {describe_machine()['processor']}")
        for part in options.only:
            measure(part, options, file, folder)
    return 0


def build(model: Path, file: Path) -> str:
    """A tiny checkpoint; its tokens are about as long as those of a large model's tokenizer."""
    from whet.models.tiny import build_tiny

    if not model.exists():
        with file.open(encoding="utf-8") as handle:
            rows = [json.loads(line) for line in islice(handle, 2000)]
        build_tiny(model, (text for row in rows for text in row.values()), vocab_size=2048)
    return str(model)


def measure(part: str, options: argparse.Namespace, file: Path, folder: Path) -> None:
    match part:
        case "check":
            seconds, memory = work([*WHET, "data", "check", str(file)], folder)
            print(f"check: {seconds:.1f} s; {memory}", flush=True)
        case "tokenise":
            for _ in range(options.rounds):
                for cores in (1, 2):
                    tokenise(options, file, folder, cores)
        case "step":
            shutil.rmtree(folder / "cache", ignore_errors=True)
            shutil.rmtree(folder / "run", ignore_errors=True)
            seconds, memory = work(training(options, file, folder, steps=1), folder, until=folder / "run")
            print(f"first step, from nothing: {seconds:.1f} s; {memory}", flush=True)
        case _:
            shutil.rmtree(folder / "run", ignore_errors=True)
            work(training(options, file, folder, steps=10**6), folder, until=folder / "run", steps=3)
            before = steps_in(folder / "run")
            command = training(options, file, folder, steps=10**6)
            seconds, memory = work(command, folder, until=folder / "run", steps=before + 1)
            print(f"killed at step {before}, at step {before + 1} again: {seconds:.1f} s; {memory}", flush=True)


WHET = (sys.executable, "-m", "whet")


def training(options: argparse.Namespace, file: Path, folder: Path, *, steps: int) -> list[str]:
    verb = "dpo" if options.kind == "pairs" else "sft"
    keys = [
        f"data.files={file}", f"run={folder / 'run'}", f"model.path={options.model}", "train.precision=fp32",
        "model.device=cpu", f"train.max_steps={steps}", "train.save_every=1", f"train.batch_size={options.batch_size}",
        f"data.eval_fraction={options.eval_fraction}",
    ]  # fmt: skip
    return [*WHET, verb, *keys]


def tokenise(options: argparse.Namespace, file: Path, folder: Path, cores: int) -> None:
    shutil.rmtree(folder / "cache", ignore_errors=True)
    kind = "preference" if options.kind == "pairs" else "conversation"
    available = sorted(os.sched_getaffinity(0))[:cores]
    command = ["taskset", "-c", ",".join(map(str, available)), sys.executable, "-c", TOKENISE]
    seconds, memory = work([*command, str(file), str(options.model), kind], folder)
    print(f"tokenise on {cores} cores: {seconds:.1f} s with the start; {memory}", flush=True)


def work(command: Sequence[str], folder: Path, *, until: Path | None = None, steps: int = 1) -> tuple[float, Memory]:
    """Seconds and memory of a command; with `until`, to where that run has so many steps, and then it is killed."""
    begun, memory = time.perf_counter(), Memory()
    environment = os.environ | {"WHET_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)
        reached = False
        while process.poll() is None and not reached:
            memory.look(process.pid)
            time.sleep(POLL_SECONDS)
            reached = until is not None and steps_in(until) >= steps
        seconds = time.perf_counter() - begun
        if reached:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    text = (folder / "said.txt").read_text(errors="replace")
    if process.returncode and not reached:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{text[-2000:]}")
    print("    " + "\n    ".join(line[:200] for line in text.splitlines()[-4:]))
    return seconds, memory


def steps_in(run: Path) -> int:
    """The last step that the run's log has."""
    files = list(run.glob("stages/*/metrics.jsonl"))
    lines = files[0].read_text().splitlines() if files else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def tree(root: int) -> list[int]:
    """A process and all below it."""
    found = [root]
    for pid in found:
        try:
            threads = list(Path(f"/proc/{pid}/task").iterdir())
            found += [int(word) for thread in threads for word in (thread / "children").read_text().split()]
        except OSError:
            continue
    return found


def kilobytes(pid: int, file: str, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def write_rows(path: Path, num: int, kind: str) -> None:
    """Rows that nearly all differ, of about the same length whatever the kind."""
    draw = random.Random(f"{kind}:{num}")
    temporary = path.with_name(f".{path.name}")
    with temporary.open("w", encoding="utf-8") as handle:
        for number in range(num):
            words = [" ".join(draw.choices(WORDS, k=draw.randint(4, 14))) for _ in range(2)]
            question = f"Question {number}: what of {words[0]}?"
            if kind == "pairs":
                row = {"prompt": question, "chosen": f"It is {words[1]}.", "rejected": f"No {number % 997}."}
            else:
                row = {"instruction": question, "input": "", "output": f"It is {words[1]}, {number % 9973}."}
            handle.write(json.dumps(row) + "\n")
    temporary.rename(path)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_scale", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rows", type=int, default=5_000_000)
    add("--kind", choices=["sft", "pairs"], default="sft")
    add("--model", help="checkpoint to train and write for; else a tiny one whose tokenizer has learnt such rows")
    add("--batch-size", type=int, default=8)
    add("--eval-fraction", type=float, default=0.0)
    add("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    add("--rounds", type=int, default=1, help="how often tokenising is measured, on 1 and 2 cores in turn")
    add("--folder", help="where files, cache and run go and stay; else a temporary folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
