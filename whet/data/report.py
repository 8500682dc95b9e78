"""The report of `whet data check`, as a person reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from whet.errors import printable

if TYPE_CHECKING:
    from whet.data.doctor import Report
    from whet.data.examine import Noted
    from whet.data.lengths import Lengths

SHOWN_BAD_ROWS = 20
SHOWN_LINES = 12
BAR_WIDTH = 40


def show(report: Report, console: Console | None = None) -> None:
    """Print verdict, counts, lengths, warnings and bad rows."""
    console = console or Console(soft_wrap=True)

    def line(text: str, style: str = "") -> None:
        console.print(printable(text), style=style, markup=False, highlight=False)

    if report.formats:
        line(f"{report.path}: format {', '.join(sorted(set(report.formats.values())))}", "bold")
    if report.num_rows:
        kinds = (
            ", ".join(f"{count} {kind}{'s' if count != 1 else ''}" for kind, count in report.kinds.items())
            or "no records"
        )
        line(f"{report.num_rows} rows, {kinds}; {report.ledger.describe()}")
    if pictures := report.pictures.describe():
        line(pictures)
    for lengths in report.lengths:
        console.print(_histogram(lengths))
    for name, count in sorted(report.empty.items()):
        line(f"empty or missing {name}: {count} of {report.num_rows} rows")
    for what, where in report.warnings.items():
        line(f"{what}: {len(where)} (line {_some(where)})", "yellow")
    for note in report.ledger.notes:
        line(note, "yellow")
    for text in report.bad_rows.examples[:SHOWN_BAD_ROWS]:
        line(text, "red")
    if len(report.bad_rows) > SHOWN_BAD_ROWS:
        line(f"and {len(report.bad_rows) - SHOWN_BAD_ROWS} more rows that cannot be read", "red")
    if report.problem:
        line(report.problem, "red")
    line("usable" if report.usable else "not usable as it is", "green" if report.usable else "bold red")


def _some(where: Noted) -> str:
    shown = "; ".join(where.examples[:SHOWN_LINES])
    return f"{shown}; …" if len(where) > SHOWN_LINES else shown


def _histogram(lengths: Lengths) -> Table:
    """Bars over bins that double in width."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.title = (
        f"{lengths.unit}: {lengths.sizes[0]} to {lengths.sizes[-1]}, median {lengths.quantile(0.5)}, "
        f"95 % below {lengths.quantile(0.95) + 1}"
    )
    table.title_justify = "left"
    bins = lengths.histogram()
    most = max(count for _, _, count in bins)
    for low, high, count in bins:
        table.add_row(f"{low}–{high - 1}", str(count), "█" * round(BAR_WIDTH * count / most) or ("▏" if count else ""))
    return table
