"""One comparison from its options to its table: texts, checkpoint, rounds, figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from benchmarks.figures import SideFigures, Work, summarise, to_json, work_of
from benchmarks.flops import peak_flops
from benchmarks.job import Outcome, Side, Task, Training
from benchmarks.machine import describe_machine
from benchmarks.pictures import write_pairs
from benchmarks.rounds import Workplace, run_rounds
from benchmarks.shapes import SHAPES, batch_size
from benchmarks.table import conclude, describe, save
from benchmarks.texts import Lengths, write_texts
from whet.errors import UserError, nearest

SPARE = 1.2
"""Made-up rows for every row needed: a few fall away where both responses are cut to the same."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the command line asks for."""

    task: Task
    model: str
    peer: Literal["trl", "own"]
    sides: tuple[str, ...] | None
    data: tuple[str, ...]
    vision: bool
    prompt_tokens: int
    response_tokens: int
    max_length: int
    batch_size: int | None
    rounds: int
    steps: int
    warmup: int
    device: Literal["cpu", "cuda"]
    precision: Literal["bf16", "fp32"]
    peak_tflops: float | None
    save: str | None


def compare(options: Comparison, work: Path) -> list[SideFigures]:
    """Prepare, run all rounds, print, and keep the result where `save` names a file."""
    sides = sides_of(options)
    training = training_of(options, work)
    place = Workplace(root=work, size=options.model, training=training, log=work / "log.txt")
    print(f"{options.task}, {options.model}: preparing checkpoint and rows", flush=True)
    place.prepare()
    shape = SHAPES[options.model]
    work_done = work_of(training, options.warmup, shape)
    print(
        f"{shape.parameters / 1e6:.0f}M parameters; {training.batch_size} records and "
        f"{sum(work_done.tokens) / options.steps:.0f} tokens a step; {options.warmup} + {options.steps} steps, "
        f"{options.rounds} rounds",
        flush=True,
    )
    outcomes = run_rounds(place, sides, options.rounds, print_round)
    name = device_name() if options.device == "cuda" else None
    peak = options.peak_tflops * 1e12 if options.peak_tflops else peak_flops(name) if name else None
    figures = summarise(outcomes, work_done, peak)
    print_losses(figures)
    print("\n" + describe(figures) + "\n" + conclude(figures))
    if options.save:
        print(f"kept in {save(options.save, entry(options, training, work_done, name, figures))}")
    return figures


def sides_of(options: Comparison) -> tuple[Side, ...]:
    """The sides asked for, or all of the peer's that the task has. Raises UserError for one that is not there."""
    known: tuple[Side, ...] = get_args(Side)
    if options.sides is not None:
        for side in options.sides:
            if side not in known:
                fix = f"did you mean {near}?" if (near := nearest(side, known)) else f"choose from {', '.join(known)}"
                raise UserError("no such side", field="--sides", found=side, fix=fix)
        return tuple(side for name in options.sides for side in known if side == name)
    if options.peer == "own":
        return ("whet", "whet-unshared")
    padding_free: tuple[Side, ...] = ("trl-padding-free",) if options.task == "sft" else ()
    return ("whet", "trl-tuned", "trl-one-by-one", *padding_free, "trl-default")


def training_of(options: Comparison, work: Path) -> Training:
    """The settings all sides share; made-up texts are written where no file is given."""
    size = options.batch_size or batch_size(options.task, options.model)
    steps = options.warmup + options.steps
    data = options.data
    if options.vision:
        data = (str(work / "pairs.jsonl"),)
        write_pairs(Path(data[0]), round(SPARE * steps * size) + 1)
    if not data:
        lengths = Lengths(prompt=options.prompt_tokens, response=options.response_tokens)
        if lengths.longest > options.max_length:
            raise UserError(
                "made-up rows would be cut", field="--max-length", found=str(options.max_length),
                fix=f"raise it to {lengths.longest}, or take shorter texts",
            )  # fmt: skip
        texts = work / "texts.jsonl"
        write_texts(texts, options.task, round(SPARE * steps * size) + 1, lengths)
        data = (str(texts),)
    return Training(
        task=options.task,
        model=str(work / f"model-{options.model}"),
        data=data,
        rows=str(work / "rows.json"),
        device=options.device,
        precision=options.precision,
        batch_size=size,
        steps=steps,
        max_length=options.max_length,
        pictures=options.vision,
        learning_rate=1e-4 if options.task == "sft" else 1e-5,
    )


def print_round(number: int, side: Side, outcome: Outcome) -> None:
    seconds = " ".join(f"{second:.2f}" for second in outcome.trained.step_seconds)
    print(f"round {number} {side}: {seconds} s; peak {outcome.peak_bytes / 1e9:.2f} GB", flush=True)


def print_losses(figures: Sequence[SideFigures]) -> None:
    """Loss by step of the last round: the same at first, then alike, since adapters start from different numbers."""
    print("\nloss by step")
    for side in figures:
        print(f"  {side.side}: " + " ".join(f"{loss:.4f}" for loss in side.losses))


def device_name() -> str:
    import torch

    return str(torch.cuda.get_device_name())


def entry(
    options: Comparison, training: Training, work: Work, name: str | None, figures: Sequence[SideFigures]
) -> dict[str, Any]:
    """What is kept of a comparison. Files are named without their folders."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "task": options.task,
        "model": options.model,
        "parameters": SHAPES[options.model].parameters,
        "peer": options.peer,
        "data": "pairs of drawn pictures" if options.vision else [Path(file).name for file in options.data]
        or {"made up": True, "prompt_tokens": options.prompt_tokens, "response_tokens": options.response_tokens},
        "batch_size": training.batch_size,
        "max_length": training.max_length,
        "precision": training.precision,
        "device": training.device,
        "device_name": name,
        "rank": training.rank,
        "learning_rate": training.learning_rate,
        "rounds": options.rounds,
        "steps": options.steps,
        "warmup": options.warmup,
        "tokens_per_step": sum(work.tokens) / options.steps,
        "machine": describe_machine(),
        "sides": to_json(figures),
    }
