"""How fast online RL is: whet's `grpo` stage beside TRL's GRPOTrainer.

    round 1   whet  trl-tuned
    round 2   whet  trl-tuned ...

The same prompts in the same order, as many answers of as many tokens to each, the same reward function; every training
in a process of its own.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.compare import device_name
from benchmarks.generate import call
from benchmarks.grpo_figures import SideFigures, describe, summarise
from benchmarks.grpo_job import SIDES, Job, Learning, Outcome, Side, read_outcome, write_job
from benchmarks.machine import describe_machine
from benchmarks.shapes import SHAPES
from benchmarks.table import save
from whet.errors import RunError, UserError


def add_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--model", choices=[name for name in SHAPES if name != "vl"], default="103m", help="size of the random model")
    add("--vision", action="store_true", help="questions about drawn pictures, put to the model `vl`")
    add("--prompts", type=int, default=1, help="of a step")
    add("--samples", type=int, default=8, help="answers to each prompt")
    add("--new-tokens", type=int, default=64, help="tokens of each answer")
    add("--prompt-tokens", type=int, default=96, help="mean tokens of a prompt; lengths differ by a quarter")
    add("--kl-weight", type=float, default=0.04, help="0 needs no reference")
    add("--sides", help=f"only these, comma-separated, the first to compare with: {', '.join(SIDES)}")
    add("--rounds", type=int, default=3, help="trainings of each side")
    add("--steps", type=int, default=5, help="timed steps of a training")
    add("--warmup", type=int, default=2, help="steps before those, not timed")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--save", metavar="NAME", help="append the result to benchmarks/results/NAME.json")
    add("--work", metavar="DIR", help="keep checkpoint and log there; a checkpoint that is there is used again")


def grpo(options: argparse.Namespace, work: Path) -> list[SideFigures]:
    """Prepare, run all rounds, print, and keep the result where `--save` names a file."""
    options.model = "vl" if options.vision else options.model
    sides, learning = sides_of(options), learning_of(options, work)
    prepare(learning, options.model, options.prompt_tokens)
    print(
        f"grpo, {options.model}: {options.prompts} prompts a step, {options.samples} answers each of "
        f"{options.new_tokens} tokens; {options.warmup} + {options.steps} steps, {options.rounds} rounds",
        flush=True,
    )
    rounds: dict[Side, list[Outcome]] = {side: [] for side in sides}
    for number in range(1, options.rounds + 1):
        for side in sides:
            outcome = in_a_process_of_its_own(side, learning, work)
            rounds[side].append(outcome)
            seconds = " ".join(f"{step.seconds:.2f}" for step in outcome.learned.steps)
            print(f"round {number} {side}: {seconds} s; peak {outcome.peak_bytes / 1e9:.2f} GB", flush=True)
        check_same_work({side: outcomes[-1] for side, outcomes in rounds.items()}, learning)
    figures = summarise(rounds, options.warmup, learning.step_tokens)
    print("\n" + describe(figures))
    if options.save:
        print(f"kept in {save(options.save, entry(options, learning, figures))}")
    return figures


def sides_of(options: argparse.Namespace) -> tuple[Side, ...]:
    """The sides asked for. Raises UserError for one that is not there."""
    asked = options.sides.split(",") if options.sides else SIDES
    for side in asked:
        if side not in SIDES:
            raise UserError("no such side", field="--sides", found=side, fix=f"choose from {', '.join(SIDES)}")
    return tuple(side for name in asked for side in SIDES if side == name)


def learning_of(options: argparse.Namespace, work: Path) -> Learning:
    """The settings all sides share."""
    return Learning(
        checkpoint=str(work / f"policy-{options.model}"),
        data=str(work / "prompts.jsonl"),
        ordered=str(work / "ordered.json"),
        device=options.device,
        pictures=options.vision,
        prompts=options.prompts,
        samples=options.samples,
        new_tokens=options.new_tokens,
        steps=options.warmup + options.steps,
        kl_weight=options.kl_weight,
    )


def prepare(learning: Learning, size: str, prompt_tokens: int) -> None:
    """Prompts and checkpoint, made in a process of their own: so this one loads no torch, and no side starts in a
    machine whose memory is taken."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(_prepare, learning, size, prompt_tokens).result()


def _prepare(learning: Learning, size: str, prompt_tokens: int) -> None:
    from benchmarks.grpo_prepare import prepare

    prepare(learning, size, prompt_tokens)


def in_a_process_of_its_own(side: Side, learning: Learning, work: Path) -> Outcome:
    """One training. Raises RunError where its process fails."""
    folder, job, outcome = work / side, work / f"{side}.json", work / f"{side}.out.json"
    shutil.rmtree(folder, ignore_errors=True)  # what a failed comparison left
    outcome.unlink(missing_ok=True)
    write_job(job, Job(side=side, learning=learning, folder=str(folder)))
    call([sys.executable, "-m", "benchmarks.grpo_side", str(job), str(outcome)], work / "log.txt")
    shutil.rmtree(folder, ignore_errors=True)
    return read_outcome(outcome)


def check_same_work(outcomes: Mapping[Side, Outcome], learning: Learning) -> None:
    """Raise RunError unless all sides took the same steps: prompts, number and lengths of answers, KL weight."""
    (first_side, first), *_ = outcomes.items()
    lengths = [learning.new_tokens] * (learning.prompts * learning.samples)
    for side, outcome in outcomes.items():
        learned = outcome.learned
        found = {
            "steps": (len(learned.steps), learning.steps),
            "kl_weight": (learned.kl_weight, learning.kl_weight),
            "answers": ([step.lengths for step in learned.steps], [lengths] * learning.steps),
            "prompts": tuple([step.prompt_ids for step in steps] for steps in (learned.steps, first.learned.steps)),
        }
        for name, (theirs, expected) in found.items():
            if theirs != expected:
                raise RunError(
                    f"{side} did not do the work it was given" if name != "prompts" else
                    f"{first_side} and {side} did not do the same work",
                    field=name, found=str(theirs)[:80], fix="their figures cannot be compared",
                )  # fmt: skip


def entry(options: argparse.Namespace, learning: Learning, figures: Sequence[SideFigures]) -> dict[str, Any]:
    """What is kept of a comparison."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "task": "grpo",
        "model": options.model,
        "parameters": SHAPES[options.model].parameters,
        "prompts": options.prompts,
        "samples": options.samples,
        "new_tokens": options.new_tokens,
        "prompt_tokens": options.prompt_tokens,
        "kl_weight": learning.kl_weight,
        "learning_rate": learning.learning_rate,
        "rank": learning.rank,
        "precision": "bf16",
        "device": options.device,
        "device_name": device_name() if options.device == "cuda" else None,
        "rounds": options.rounds,
        "steps": options.steps,
        "warmup": options.warmup,
        "machine": describe_machine(),
        "sides": [asdict(side) for side in figures],
    }
