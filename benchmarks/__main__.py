"""The command line: `python -m benchmarks sft|dpo|reward|grpo` compares training, `generate` compares engines,
`serve` compares clients of a vLLM server, `estimate` compares `whet estimate` with what was taken, and
`python -m benchmarks table` renders README.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from benchmarks import estimate, generate, grpo, serve
from benchmarks.compare import Comparison, compare
from benchmarks.job import TASKS, Side
from benchmarks.shapes import SHAPES
from benchmarks.table import write_readme
from whet.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        if options.command == "table":
            write_readme()
            return 0
        if options.work is not None:
            Path(options.work).mkdir(parents=True, exist_ok=True)
            run(options, Path(options.work).resolve())
            return 0
        with tempfile.TemporaryDirectory(prefix="whet-benchmark-") as folder:
            run(options, Path(folder))
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace, work: Path) -> None:
    if options.command == "generate":
        generate.generate(options, work)
    elif options.command == "grpo":
        grpo.grpo(options, work)
    elif options.command == "serve":
        serve.serve(options, work)
    elif options.command == "estimate":
        estimate.estimate(options, work)
    else:
        compare(comparison(options), work)


def parser() -> argparse.ArgumentParser:
    """`table` has no options; the three tasks of training on fixed data share theirs."""
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("table", help="render README.md's table from results/*.json")
    generate.add_options(commands.add_parser("generate", help="compare engines"))
    grpo.add_options(commands.add_parser("grpo", help="compare online RL"))
    serve.add_options(commands.add_parser("serve", help="compare clients of a vLLM server"))
    estimate.add_options(commands.add_parser("estimate", help="compare `whet estimate` with what a run takes"))
    for task in TASKS:
        add_options(commands.add_parser(task, help=f"compare {task}"), task)
    return top


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    add = parser.add_argument
    add("--model", choices=[name for name in SHAPES if name != "vl"], default="103m", help="size of the random model")
    add("--peer", choices=["trl", "own"], default="trl", help="own: whet without prefix sharing")
    add("--sides", help=f"only these, comma-separated, the first to compare with: {', '.join(get_args(Side))}")
    add("--data", nargs="+", help="files whet reads; without it texts are made up")
    add("--prompt-tokens", type=int, help="made-up texts: mean tokens of a prompt (128)")
    add("--response-tokens", type=int, help="made-up texts: mean tokens of a response (128; 76 behind long prompts)")
    add("--long-prompts", action="store_true", help="made-up prompts of four times the response")
    if command == "dpo":
        add("--vision", action="store_true", help="questions about drawn pictures, put to the model `vl`")
    add("--max-length", type=int, default=512)
    add("--batch-size", type=int, help="records a step; by default by task and model")
    add("--rounds", type=int, default=3, help="trainings of each side")
    add("--steps", type=int, default=5, help="timed steps of a training")
    add("--warmup", type=int, default=2, help="steps before those, not timed")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--precision", choices=["bf16", "fp32"], default="bf16")
    add("--peak-tflops", type=float, help="CUDA: the device's dense bf16 peak, where it is not known")
    add("--save", metavar="NAME", help="append the result to benchmarks/results/NAME.json")
    add("--work", metavar="DIR", help="keep checkpoint, rows and log there; a checkpoint that is there is used again")


def comparison(options: argparse.Namespace) -> Comparison:
    if options.data and (options.long_prompts or options.prompt_tokens or options.response_tokens):
        raise UserError("lengths are those of the files", field="--data", fix="ask for lengths of made-up texts only")
    if options.peer == "own" and options.command == "sft":
        raise UserError("a conversation shares no prompt", field="--peer", found="own", fix="take dpo or reward")
    vision = options.command == "dpo" and options.vision
    if vision and options.data:
        raise UserError("pictures are drawn", field="--data", fix="leave out --vision or --data")
    response = options.response_tokens or (76 if options.long_prompts else 128)
    return Comparison(
        task=options.command,
        model="vl" if vision else options.model,
        peer=options.peer,
        sides=tuple(options.sides.split(",")) if options.sides else None,
        data=tuple(str(Path(file).resolve()) for file in options.data or ()),
        vision=vision,
        prompt_tokens=4 * response if options.long_prompts else options.prompt_tokens or 128,
        response_tokens=response,
        max_length=options.max_length,
        batch_size=options.batch_size,
        rounds=options.rounds,
        steps=options.steps,
        warmup=options.warmup,
        device=options.device,
        precision=options.precision,
        peak_tflops=options.peak_tflops,
        save=options.save,
    )


if __name__ == "__main__":
    sys.exit(main())
