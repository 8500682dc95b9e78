"""`whet estimate` against what `whet run` took: peak resident memory of plans between 3M and 0.6B parameters.

    python -m benchmarks estimate                          all plans, each run in a process of its own
    python -m benchmarks estimate --plans sft-3m-full,dpo-0.6b-lora --save cpu

Models are random and built on the spot, texts are made up, arithmetic is fp32 on the CPU; two steps, so that the second
one has the optimiser's state. Estimated is first, without a look at what comes out; measured is VmHWM, the largest
resident memory of the process from its start to its end, the report of the run included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, peak_resident_bytes
from benchmarks.shapes import SHAPES, Shape, build_model
from benchmarks.texts import WORDS, Lengths, write_prompts, write_texts
from whet.errors import UserError

SIZES = {
    "3m": Shape(hidden=128, layers=4, heads=4, kv_heads=2, head_dim=32, intermediate=384, vocabulary=16_384),
    "21m": Shape(hidden=320, layers=8, heads=5, kv_heads=5, head_dim=64, intermediate=960, vocabulary=32_768),
    "103m": SHAPES["103m"],
    "0.6b": SHAPES["0.6b"],
}
STEPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One plan."""

    kind: str
    model: str
    lora: bool
    batch_size: int = 4
    recompute: bool = False

    @property
    def name(self) -> str:
        how = "lora" if self.lora else "full"
        return f"{self.kind}-{self.model}-{how}{'-recompute' if self.recompute else ''}"


CASES = (
    Case(kind="sft", model="3m", lora=False),
    Case(kind="dpo", model="3m", lora=True),
    Case(kind="grpo", model="3m", lora=False, batch_size=2),
    Case(kind="sft", model="21m", lora=True),
    Case(kind="dpo", model="21m", lora=False),
    Case(kind="grpo", model="21m", lora=True, batch_size=2),
    Case(kind="sft", model="103m", lora=False),
    Case(kind="dpo", model="103m", lora=True),
    Case(kind="grpo", model="103m", lora=False, batch_size=1),
    Case(kind="sft", model="0.6b", lora=True, batch_size=2),
    Case(kind="dpo", model="0.6b", lora=True, batch_size=1),
    Case(kind="grpo", model="0.6b", lora=True, batch_size=1),
    Case(kind="sft", model="0.6b", lora=False, batch_size=1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    case: str
    parameters: int
    trainable: int
    tokens: int
    """Of the largest micro-batch."""
    estimated: float
    measured: int
    moment: str
    """When the estimate has its peak."""

    @property
    def off(self) -> float:
        """Estimate over measurement, less one."""
        return self.estimated / self.measured - 1


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--plans", help=f"only these, comma-separated: {', '.join(case.name for case in CASES)}")
    add("--save", metavar="NAME", help="append the result to benchmarks/results/NAME.json")
    add("--work", metavar="DIR", help="keep models, data and runs there; a model that is there is used again")


def estimate(options: argparse.Namespace, work: Path) -> None:
    """Estimate, run and compare. Raises UserError for a plan that is not known, or a run that failed."""
    wanted = options.plans.split(",") if options.plans else [case.name for case in CASES]
    known = {case.name: case for case in CASES}
    if unknown := [name for name in wanted if name not in known]:
        raise UserError("no such plan", field="--plans", found=unknown[0], fix=f"choose from {', '.join(known)}")
    print(HEADER, flush=True)
    outcomes = []
    for name in wanted:
        plan = write_plan(known[name], work)
        outcomes.append(compare(name, plan))
        print(line(outcomes[-1]), flush=True)
    if options.save:
        from benchmarks.table import save

        save(options.save, entry(outcomes))


HEADER = f"{'plan':22}{'parameters':>12}{'trained':>10}{'estimated MB':>14}{'measured MB':>13}{'off':>8}"


def line(outcome: Outcome) -> str:
    return (
        f"{outcome.case:22}{outcome.parameters / 1e6:11.1f}M{outcome.trainable / 1e6:9.1f}M"
        f"{outcome.estimated / 1e6:14.0f}{outcome.measured / 1e6:13.0f}{100 * outcome.off:+7.1f}%"
    )


def entry(outcomes: list[Outcome]) -> dict[str, Any]:
    """What is kept in results/."""
    return {
        "task": "estimate", "date": datetime.now(UTC).date().isoformat(), "machine": describe_machine(),
        "device_name": None, "plans": [asdict(outcome) for outcome in outcomes],
    }  # fmt: skip


def compare(name: str, plan: Path) -> Outcome:
    """Both in processes of their own, one after the other."""
    said = json.loads(_output([sys.executable, "-m", "whet", "estimate", str(plan), "--json"], accept=(0, 1)))[0]
    measured = _output([sys.executable, "-m", "benchmarks.estimate", str(plan)], accept=(0,))
    return Outcome(
        case=name, parameters=said["parameters"], trainable=said["trainable"], tokens=said["micro_batch"]["tokens"],
        estimated=said["peak"], measured=int(measured.split()[-1]), moment=said["peak_moment"],
    )  # fmt: skip


def _output(command: list[str], *, accept: tuple[int, ...]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in accept:
        raise UserError(f"`{' '.join(command[1:4])}` ended with {done.returncode}", found=done.stderr[-2000:])
    return done.stdout


def write_plan(case: Case, work: Path) -> Path:
    """The plan's file, with its model and its data."""
    folder = work / case.name
    folder.mkdir(parents=True, exist_ok=True)
    lengths = Lengths(prompt=48, response=48) if case.model == "0.6b" else Lengths(prompt=128, response=128)
    data = folder / "rows.jsonl"
    if case.kind == "grpo":
        write_prompts(data, 16, lengths)
    else:
        write_texts(data, "sft" if case.kind == "sft" else "dpo", 16, lengths)
    model = work / f"model-{case.model}"
    if not model.is_dir():
        from whet.models.tiny import train_tokenizer

        tokenizer = train_tokenizer([" ".join(WORDS)] * 2, vocab_size=8192, max_positions=4096)
        build_model(SIZES[case.model], tokenizer, model, device="cpu")
    plan = folder / "plan.yaml"
    plan.write_text(json.dumps(plan_of(case, model, data, folder / "run"), indent=1), encoding="utf-8")
    return plan


def plan_of(case: Case, model: Path, data: Path, run: Path) -> Mapping[str, Any]:
    """An ordinary plan with whet's defaults, cut after a few steps."""
    stage: dict[str, Any] = {
        "kind": case.kind, "data": {"files": str(data)},
        "train": {
            "batch_size": case.batch_size, "max_steps": STEPS, "precision": "fp32",
            "gradient_checkpointing": case.recompute,
        },
    }  # fmt: skip
    if case.kind == "grpo":
        stage["rollout"] = {"group_size": 4, "max_new_tokens": 32}
        stage["reward"] = {"type": "length", "target": 16}
    section: dict[str, Any] = {"path": str(model), "device": "cpu"} | ({} if case.lora else {"lora": None})
    return {"run": f"{run}-{time.time_ns()}", "model": section, "stages": [stage]}


def lines_of(entry: Mapping[str, Any]) -> Iterator[str]:
    """Rows of README.md's table."""
    for plan in entry["plans"]:
        outcome = Outcome(**plan)
        cells = [
            outcome.case, f"{outcome.parameters / 1e6:.1f}M", f"{outcome.trainable / 1e6:.1f}M", outcome.tokens,
            f"{outcome.estimated / 1e6:.0f}", f"{outcome.measured / 1e6:.0f}", f"{100 * outcome.off:+.1f} %",
            entry["date"],
        ]  # fmt: skip
        yield "| " + " | ".join(map(str, cells)) + " |"


def measure(plan: str) -> int:
    """`whet run` in this process, and then the most memory it has held."""
    from whet.cli import main

    try:
        main(["run", plan])
    except SystemExit as ended:
        if ended.code:
            return int(ended.code)
    print(peak_resident_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(measure(sys.argv[1]))
