"""`whet export verl`: a stage of a plan as a folder that verl runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whet.cli.data import help_when_alone
from whet.errors import UserError

export_app = typer.Typer(help="Write a plan for another engine.", rich_markup_mode=None)


@export_app.callback(invoke_without_command=True)
def _help(context: typer.Context) -> None:
    help_when_alone(context)


@export_app.command()
def verl(
    plan: Annotated[str, typer.Argument(metavar="PLAN.yaml", help="Plan file, or an rlhf.yaml.")],
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the plan, and verl.KEY=VALUE: `whet explain verl`."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write.")] = None,
    stage: Annotated[
        str | None, typer.Option(help="Stage to export, where several would do; for an rlhf.yaml ppo or grpo.")
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Start verl on it, where verl and GPUs are.")] = False,
) -> None:
    """Write a ppo, grpo or gspo stage, or an rlhf.yaml, for verl 0.9.1: rows, keys, reward function and command."""
    if out is None:
        raise UserError("where to?", field="--out", fix="name a folder, e.g. --out exported")
    from whet.config.load import load_plan
    from whet.config.rlhf import is_rlhf, load_rlhf
    from whet.config.verl import PREFIX, verl_options

    options = verl_options([key for key in keys or () if key.startswith(PREFIX)])
    overrides = [key for key in keys or () if not key.startswith(PREFIX)]
    if is_rlhf(plan):
        file = load_rlhf(plan, overrides)
        from whet.launch.verl.rlhf import export_rlhf

        options = export_rlhf(file, options, out, algorithm=stage)
    else:
        resolved = load_plan(plan, overrides)
        from whet.launch.verl.export import export_plan

        export_plan(resolved, options, out, stage=stage)
    print(f"written: {out}/run.sh starts it, {out}/README.md says what is what")
    if run:
        from whet.launch.verl.start import start

        raise typer.Exit(start(out.resolve(), options))
