"""`whet estimate`: what a plan's training stages will take, before anyone waits."""

from __future__ import annotations

import math
import re
from typing import Annotated

import typer

from whet.cli.output import print_json
from whet.errors import UserError
from whet.estimate.setting import SHARDINGS, Sharding

UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}

PlanArgs = Annotated[
    list[str] | None, typer.Argument(metavar="PLAN.yaml [KEY=VALUE]...", help="Plan file and keys that override it.")
]


def estimate(
    args: PlanArgs = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="On paper: so many GPUs, here or not.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of one device, in GB: 80, 24.")] = None,
    sharding: Annotated[str | None, typer.Option(help="On paper: none, fsdp, zero2 or zero3.")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=8, max=2**24, help="Rows of so many tokens, without the data.")
    ] = None,
    flops: Annotated[str | None, typer.Option(help="FLOP/s that a rank reaches: 300T.")] = None,
    probe: Annotated[int, typer.Option(min=0, help="Run so many steps of each stage, for its time.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, in bytes and seconds.")] = False,
) -> None:
    """Say what training will take: parameters, memory of a rank by part, tokens and time of an epoch.

    Works from a checkpoint or from its config.json alone, and loads no weights. Exit code 1 where something does not
    fit.
    """
    words = list(args or ())
    if not words or ("=" in words[0] and not words[0].endswith((".yaml", ".json"))):
        raise UserError("which plan?", fix="write `whet estimate PLAN.yaml`")
    room = None if memory is None else number(memory, "--memory", unit=1e9)
    rate = None if flops is None else number(flops, "--flops")
    sharded = _sharding(sharding)
    from whet.config.load import load_plan
    from whet.estimate.result import to_json
    from whet.estimate.text import table
    from whet.stages.estimate.plan import Asked, estimate_plan

    plan = load_plan(words[0], words[1:])
    asked = Asked(gpus=gpus, memory=room, sharding=sharded, max_length=max_length, flops=rate)
    found = estimate_plan(plan, asked)
    if probe:
        from whet.stages.estimate.probe import with_probe

        found = with_probe(found, plan, steps=probe)
    if as_json:
        print_json(to_json(found))
    else:
        print("\n\n".join(map(table, found)))
    if not all(one.fits for one in found):
        raise typer.Exit(1)


def number(text: str, field: str, *, unit: float = 1.0) -> float:
    """`80`, `300T`, `24GB` as a number; `unit` is that of a number without one. Raises UserError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)b?", text.strip().lower())
    if found is None:
        raise UserError("not a number", field=field, found=repr(text), fix="write e.g. 80, 24GB or 300T")
    value, suffix = float(found[1]), found[2]
    value *= UNITS[suffix] if suffix else unit
    if not 0 < value < math.inf:
        raise UserError("must be above 0, and finite", field=field, found=repr(text))
    return value


def _sharding(name: str | None) -> Sharding | None:
    if name is None:
        return None
    for known in SHARDINGS:
        if name == known:
            return known
    raise UserError(f"must be one of {', '.join(SHARDINGS)}", field="--sharding", found=repr(name))
