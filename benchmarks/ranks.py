"""One rank and several, each with one core: seconds a step of the same training, and how much of the ideal is reached.

    python -m benchmarks.ranks --model 103m --rounds 2 --save NAME

The same plan with the same steps, since `train.batch_size` counts records over all ranks: `whet run` with one process,
with two that each hold the whole model, and with two by FSDP2; an adapter and all weights. Every run is one of its own,
in turn, its ranks told to compute with one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.estimate import SIZES
from benchmarks.figures import Spread, shown, spread
from benchmarks.machine import describe_machine
from benchmarks.rounds import ROOT
from benchmarks.shapes import build_model
from benchmarks.table import save, write_readme
from benchmarks.texts import WORDS, Lengths, write_texts
from whet.errors import RunError
from whet.runs.files import read_jsonl

WARMUP = 2
"""Steps that do not count."""
WAYS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "1": (1, ()), "2": (2, ()), "2, fsdp": (2, ("launch.sharding=fsdp",))
}  # fmt: skip
"""What is compared: processes, and what the plan is told besides."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way, over all rounds."""

    ranks: str
    trains: str
    step_seconds: float
    """Median over the timed steps of all rounds."""
    speedup: Spread | None
    """Seconds of one rank over these, round by round."""
    rounds: list[float]
    """Seconds a step, each the mean of a round's timed steps."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="whet-ranks-") as name:
        ways = [way for trains in ("adapter", "all") for way in compare(options, trains, Path(name))]
    print("\n" + describe(ways))
    if options.save:
        print(f"kept in {save(options.save, entry(options, ways))}")
        write_readme()
    return 0


def compare(options: argparse.Namespace, trains: str, work: Path) -> list[Way]:
    """All ways in turn, round by round."""
    plan = write_plan(options, trains, work)
    seconds: dict[str, list[float]] = {ranks: [] for ranks in WAYS}
    for number in range(options.rounds):
        for ranks, (processes, told) in WAYS.items():
            steps = train(plan, work / f"{trains}-{ranks}-{number}", processes, told)
            seconds[ranks].append(sum(steps) / len(steps))
            print(f"{trains}, {ranks}: {' '.join(f'{step:.2f}' for step in steps)} s", flush=True)
    one = seconds["1"]
    return [
        Way(
            ranks=ranks, trains=trains, step_seconds=median(found), rounds=found,
            speedup=None if found is one else spread([a / b for a, b in zip(one, found, strict=True)]),
        )
        for ranks, found in seconds.items()
    ]  # fmt: skip


def write_plan(options: argparse.Namespace, trains: str, work: Path) -> Path:
    """Rows of one length: what differs is the ranks, and not which of them got the long ones."""
    model, data, plan = work / "model", work / "rows.jsonl", work / f"{trains}.yaml"
    if not model.is_dir():
        from whet.models.tiny import train_tokenizer

        tokenizer = train_tokenizer([" ".join(WORDS)] * 2, vocab_size=8192, max_positions=4096)
        build_model(SIZES[options.model], tokenizer, model, device="cpu")
        write_texts(data, "sft", options.batch_size * (WARMUP + options.steps), Lengths(prompt=96, response=96))
    steps = WARMUP + options.steps
    training = {"batch_size": options.batch_size, "max_steps": steps, "precision": options.precision}
    stage = {"kind": "sft", "data": {"files": [str(data)]}, "train": training}
    section = {"path": str(model), "device": "cpu"} | ({} if trains == "adapter" else {"lora": None})
    plan.write_text(json.dumps({"run": str(work / "run"), "model": section, "stages": [stage]}), encoding="utf-8")
    return plan


def train(plan: Path, run: Path, processes: int, told: Sequence[str]) -> list[float]:
    """Seconds of the timed steps. Raises RunError where the run fails."""
    words = [sys.executable, "-m", "whet", "run", str(plan), f"run={run}", f"launch.processes={processes}", *told]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"`whet run` ended with {done.returncode}", found=done.stderr[-2000:])
    rows = [row for row in read_jsonl(run / "stages" / "01-sft" / "metrics.jsonl") if "step_seconds" in row]
    return [float(row["step_seconds"]) for row in rows[WARMUP:]]


def describe(ways: Sequence[Way]) -> str:
    """Aligned text."""
    lines = [f"{'trains':10}{'ranks':10}{'s/step':>8}  times as fast as one"]
    for way in ways:
        lines.append(f"{way.trains:10}{way.ranks:10}{way.step_seconds:8.2f}  {shown(way.speedup, 2)}".rstrip())
    return "\n".join(lines)


def entry(options: argparse.Namespace, ways: Sequence[Way]) -> dict[str, Any]:
    """What is kept of a comparison."""
    return {
        "date": datetime.now(UTC).date().isoformat(), "task": "ranks", "model": options.model,
        "batch_size": options.batch_size, "precision": options.precision, "device_name": None,
        "machine": describe_machine(), "sides": [asdict(way) for way in ways],
    }  # fmt: skip


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="103m", help="size of the random model")
    parser.add_argument("--batch-size", type=int, default=8, help="records a step, over all ranks")
    parser.add_argument("--steps", type=int, default=6, help="timed ones, after two that are not")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="fp32")
    parser.add_argument("--save", metavar="NAME", help="append the result to benchmarks/results/NAME.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
