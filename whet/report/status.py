"""`whet status`: where a run stands, as a table in the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from whet.runs.reader import read_run


def print_status(root: Path) -> None:
    """Print every stage of a run with its state, its time and its first numbers, or what stopped it.

    Names, and errors that quote the user's data, are only text: Rich would read a style in [image].
    """
    run = read_run(root)
    title = Text(str(root), style="table.title")
    table = Table("stage", "kind", "status", "seconds", "result", title=title, title_justify="left")
    for stage in run.stages:
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in list(stage.metrics.items())[:4])
        seconds = f"{stage.seconds:.1f}" if stage.seconds is not None else ""
        state, result = stage.status, stage.error or numbers
        if not stage.planned:
            state, result = "leftover", f"the plan names no such stage; it was {stage.status}"
        cells = (stage.name, stage.kind, state, seconds, result)
        table.add_row(*map(Text, cells))
    Console().print(table)
