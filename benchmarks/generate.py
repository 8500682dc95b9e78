"""How fast answers are generated: whet's engine beside transformers' generate and vLLM.

    round 1   whet  transformers  vllm
    round 2   whet  transformers  vllm ...

The same random prompts for all, several answers each, exactly so many tokens; every side in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.compare import device_name
from benchmarks.figures import Spread, spread
from benchmarks.generate_job import PRECISIONS, SIDES, Generated, Generation, Side, read_generated, write_job
from benchmarks.machine import describe_machine
from benchmarks.memory import build
from benchmarks.rounds import ROOT
from benchmarks.shapes import SHAPES
from benchmarks.table import save
from whet.errors import RunError, UserError

PEER_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
}  # fmt: skip
"""vLLM in one process with 1 GiB for keys and values, on all cores."""


@dataclass(frozen=True, kw_only=True)
class SideFigures:
    """One side, over all rounds."""

    side: Side
    version: str
    tokens_per_second: float
    """Median over the timed runs of all rounds."""
    run_seconds: float
    load_seconds: float
    peak_gb: float
    """Medians over rounds, 1e9 bytes."""
    imported_gb: float
    threads: int
    time_ratio: Spread | None
    """Tokens a second of the first side over this side's, round by round: more than 1 where the first is faster."""
    memory_ratio: Spread | None
    """The first side's peak over this side's, round by round."""
    seconds: list[list[float]]
    """Every timed run of every round."""


def add_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--model", choices=list(SHAPES), default="103m", help="size of the random model")
    add("--prompts", type=int, default=4)
    add("--samples", type=int, default=8, help="answers to each prompt")
    add("--new-tokens", type=int, default=64, help="tokens of each answer")
    add("--prompt-tokens", type=int, default=96, help="mean tokens of a prompt; lengths differ by a quarter")
    add("--vllm-python", metavar="PATH", help="an interpreter that has vLLM; without one, vllm is left out")
    add("--sides", help=f"only these, comma-separated, the first to compare with: {', '.join(SIDES)}")
    add("--rounds", type=int, default=3, help="processes of each side")
    add("--repeats", type=int, default=3, help="timed runs in a process, after one that is not")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--precision", choices=list(PRECISIONS), default="bf16", help="of weights and products, for all sides")
    add("--save", metavar="NAME", help="append the result to benchmarks/results/NAME.json")
    add("--work", metavar="DIR", help="keep checkpoint and log there; a checkpoint that is there is used again")


def generate(options: argparse.Namespace, work: Path) -> list[SideFigures]:
    """Prepare, run all rounds, print, and keep the result where `--save` names a file."""
    sides = sides_of(options)
    generation = prepare(options, work)
    print(
        f"generate, {options.model}: {options.prompts} prompts, {options.samples} answers each of "
        f"{options.new_tokens} tokens, {generation.precision}, {options.rounds} rounds of {options.repeats} runs",
        flush=True,
    )
    rounds: dict[Side, list[Generated]] = {side: [] for side in sides}
    for number in range(1, options.rounds + 1):
        for side in sides:
            python = options.vllm_python if side == "vllm" else sys.executable
            generated = in_a_process_of_its_own(side, generation, work, python)
            rounds[side].append(generated)
            speeds = " ".join(f"{generation.tokens / second:.0f}" for second in generated.seconds)
            print(f"round {number} {side}: {speeds} tokens/s; peak {generated.peak_bytes / 1e9:.2f} GB", flush=True)
    figures = summarise(rounds, generation.tokens)
    print("\n" + describe(figures))
    if options.save:
        print(f"kept in {save(options.save, entry(options, generation, figures))}")
    return figures


def sides_of(options: argparse.Namespace) -> tuple[Side, ...]:
    """The sides asked for. vllm without an interpreter is left out, and that is said; asked for by name, refused."""
    asked = options.sides.split(",") if options.sides else list(SIDES)
    for side in asked:
        if side not in SIDES:
            raise UserError("no such side", field="--sides", found=side, fix=f"choose from {', '.join(SIDES)}")
    if "vllm" in asked and options.vllm_python is None:
        fix = "name an interpreter that has vLLM: --vllm-python PATH"
        if options.sides:
            raise UserError("vllm has no interpreter", field="--sides", found=options.sides, fix=fix)
        print(f"vllm is left out; {fix}")
        asked.remove("vllm")
    return tuple(side for name in asked for side in SIDES if side == name)


def prepare(options: argparse.Namespace, work: Path) -> Generation:
    """The checkpoint and the prompts."""
    checkpoint = checkpoint_of(options.model, work, options.device)
    generator, words = random.Random(0), SHAPES[options.model].vocabulary
    lengths = [round(options.prompt_tokens * generator.uniform(0.75, 1.25)) for _ in range(options.prompts)]
    return Generation(
        checkpoint=str(checkpoint),
        device=options.device,
        precision=options.precision,
        prompts=[[generator.randrange(1, words) for _ in range(max(1, length))] for length in lengths],
        samples=options.samples,
        new_tokens=options.new_tokens,
        repeats=options.repeats,
    )


def checkpoint_of(model: str, work: Path, device: str) -> Path:
    """The random model of this size, made in a process of its own unless it is there."""
    checkpoint = work / f"model-{model}"
    if not checkpoint.is_dir():
        # Of its own, so that this one loads no torch and no side starts in a machine whose memory is taken.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            process.submit(build, model, checkpoint, device).result()
    return checkpoint


def in_a_process_of_its_own(side: Side, generation: Generation, work: Path, python: str) -> Generated:
    """Raises RunError where the process fails, or answers are not as many and as long as asked."""
    job, outcome = work / f"{side}.json", work / f"{side}.out.json"
    outcome.unlink(missing_ok=True)
    write_job(job, side, generation)
    call([python, "-m", "benchmarks.generate_side", str(job), str(outcome)], work / "log.txt")
    generated = read_generated(outcome)
    expected = [generation.new_tokens] * (len(generation.prompts) * generation.samples)
    if generated.lengths != expected:
        raise RunError(f"{side} gave other answers than asked for", found=f"lengths {generated.lengths[:8]}")
    return generated


def call(command: Sequence[str], log_file: Path) -> None:
    with log_file.open("ab") as log:
        begin = log.tell()
        environment = os.environ | PEER_ENVIRONMENT
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False)
    if done.returncode:
        written = log_file.read_bytes()[begin:].decode("utf-8", errors="replace").strip()
        last = written.splitlines()[-1] if written else f"exit code {done.returncode}"
        raise RunError(last, file=str(log_file), fix="the file has all that it printed")


def summarise(rounds: Mapping[Side, Sequence[Generated]], tokens: int) -> list[SideFigures]:
    """One entry a side; the others are compared with the first."""
    first = next(iter(rounds.values()))
    return [_side(side, runs, first, tokens) for side, runs in rounds.items()]


def _side(side: Side, rounds: Sequence[Generated], first: Sequence[Generated], tokens: int) -> SideFigures:
    seconds = [generated.seconds for generated in rounds]
    typical = median(second for runs in seconds for second in runs)
    pairs = [] if rounds is first else list(zip(rounds, first, strict=True))
    return SideFigures(
        side=side,
        version=rounds[0].version,
        tokens_per_second=tokens / typical,
        run_seconds=typical,
        load_seconds=median(generated.load_seconds for generated in rounds),
        peak_gb=median(generated.peak_bytes for generated in rounds) / 1e9,
        imported_gb=median(generated.imported_bytes for generated in rounds) / 1e9,
        threads=rounds[0].threads,
        time_ratio=spread([median(a.seconds) / median(b.seconds) for a, b in pairs]) if pairs else None,
        memory_ratio=spread([b.peak_bytes / a.peak_bytes for a, b in pairs]) if pairs else None,
        seconds=seconds,
    )


def describe(figures: Sequence[SideFigures]) -> str:
    """Aligned text."""
    lines = [f"{'side':22}{'tokens/s':>10}{'s/run':>8}{'load s':>8}{'peak GB':>9}{'imports GB':>12}  times as fast"]
    for side in figures:
        ratio = side.time_ratio
        told = f"{ratio.median:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})" if ratio else ""
        lines.append(
            f"{f'{side.side} {side.version}'.strip():22}{side.tokens_per_second:10.0f}{side.run_seconds:8.2f}"
            f"{side.load_seconds:8.1f}{side.peak_gb:9.2f}{side.imported_gb:12.2f}  {told}".rstrip()
        )
    return "\n".join(lines)


def entry(options: argparse.Namespace, generation: Generation, figures: Sequence[SideFigures]) -> dict[str, Any]:
    """What is kept of a comparison."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "task": "generate",
        "model": options.model,
        "parameters": SHAPES[options.model].parameters,
        "prompts": options.prompts,
        "samples": options.samples,
        "new_tokens": options.new_tokens,
        "prompt_tokens": options.prompt_tokens,
        "precision": generation.precision,
        "device": options.device,
        "device_name": device_name() if options.device == "cuda" else None,
        "rounds": options.rounds,
        "repeats": options.repeats,
        "machine": describe_machine(),
        "sides": [asdict(side) for side in figures],
    }
