"""`whet status`: where a run stands, as a table in the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from whet.runs.reader import read_run


def print_status(root: Path) -> None:
    """Print every stage of a run with its state, its time and its first numbers, or what stopped it."""
    run = read_run(root)
    table = Table("stage", "kind", "status", "seconds", "result", title=str(root), title_justify="left")
    for stage in run.stages:
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in list(stage.metrics.items())[:4])
        seconds = f"{stage.seconds:.1f}" if stage.seconds is not None else ""
        table.add_row(stage.name, stage.kind, stage.status, seconds, stage.error or numbers)
    Console().print(table)
