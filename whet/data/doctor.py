"""What is in a file, and what is wrong with it, before any model is loaded: the functions behind `whet data`.

    report = check("train.jsonl", Data(), None)
    print_report(report)

Works without torch; the tokens are counted only where a tokenizer is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from whet.config.data import Data, Source
from whet.data.convert import convert
from whet.data.examine import Examined, Examiner, Noted
from whet.data.formats import kind_for
from whet.data.ledger import Ledger
from whet.data.lengths import Lengths
from whet.data.locate import locate
from whet.data.picture_check import PictureCheck
from whet.data.portions import portions
from whet.data.preview import preview
from whet.data.repeats import Repeats
from whet.data.sources import Opened
from whet.data.spread import spread
from whet.data.tokens import LengthOf, load_renderer
from whet.errors import UserError
from whet.schema.records import RecordKind

if TYPE_CHECKING:
    from rich.console import Console

    from whet.config.model import Vision

__all__ = ["Lengths", "Report", "check", "convert", "preview", "print_report"]

ANY_KIND: tuple[RecordKind, ...] = ("conversation", "preference", "rating", "ranking", "scored", "prompt")


@dataclass(slots=True)
class Report:
    """What `check` found. Lines are those of the file, or `FILE:LINE` where there are several files."""

    path: str
    formats: dict[str, str] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    num_rows: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    lengths: list[Lengths] = field(default_factory=list)
    empty: Counter[str] = field(default_factory=Counter)
    """Column -> rows where it is null, missing or empty, though other rows fill it."""
    bad_rows: Noted = field(default_factory=Noted)
    """Every row that cannot be read; of the first, place, field, what was found, what to do."""
    warnings: dict[str, Noted] = field(default_factory=dict)
    """What is suspicious -> where."""
    max_length: int = 0
    max_images: int | None = None
    pictures: PictureCheck = field(default_factory=PictureCheck)
    problem: str | None = None
    """Why the file as a whole cannot be used."""
    drops_bad_rows: bool = False

    @property
    def usable(self) -> bool:
        return self.problem is None and self.ledger.kept > 0 and (self.drops_bad_rows or not self.bad_rows)


def check(path: str, data: Data, tokenizer_path: str | None = None, vision: Vision | None = None) -> Report:
    """Read every row and report. Never raises for what is wrong with the data: that is `problem` and `bad_rows`.

    Large files are read by several processes, and some bytes a row are remembered. Raises ModelError where the
    tokenizer cannot be loaded.
    """
    length_of = LengthOf(load_renderer(tokenizer_path, data.system, vision)) if tokenizer_path else None
    report = Report(
        path=path, max_length=data.max_length, max_images=data.max_images, drops_bad_rows=data.on_bad_row == "drop"
    )
    sums = _Sums()

    def kind(opened: Opened) -> RecordKind:
        report.formats[opened.name] = opened.format
        return (kind_for(opened.format, ANY_KIND) if opened.format != "auto" else None) or "prompt"

    try:
        place = locate(Source(path=path), data, {})
        blocks = (portion for _, portion in portions([place], kind, report.ledger))
        for found in spread(Examiner(data, length_of).examine, blocks):
            sums.take(found, report)
    except UserError as error:
        report.problem = str(error)
    if report.problem is None and not report.ledger.kept:
        report.problem = f"{path}: not one of {report.num_rows} rows can be used"
    sums.finish(report)
    return report


@dataclass(slots=True)
class _Sums:
    """What can only be said of all rows together."""

    rows: Repeats = field(default_factory=Repeats)
    prompts: Repeats = field(default_factory=Repeats)
    filled: Counter[str] = field(default_factory=Counter)
    num_sound: int = 0
    characters: list[NDArray[np.int64]] = field(default_factory=list)
    tokens: list[NDArray[np.int64]] = field(default_factory=list)

    def take(self, found: Examined, report: Report) -> None:
        report.num_rows += found.num_rows
        report.kinds += found.kinds
        report.ledger.merge(found.ledger)
        report.bad_rows.merge(found.bad_rows)
        report.pictures.merge(found.pictures)
        for what, noted in found.warnings.items():
            report.warnings.setdefault(what, Noted()).merge(noted)
        self.rows.add(found.file, *found.rows)
        self.prompts.add(found.file, *found.prompts)
        self.filled += found.filled
        self.num_sound += found.num_sound
        self.characters.append(found.characters)
        self.tokens.append(found.tokens)

    def finish(self, report: Report) -> None:
        report.empty = Counter(
            {name: self.num_sound - count for name, count in self.filled.items() if count < self.num_sound}
        )
        for what, repeats in (("the same row again", self.rows), ("the same prompt again", self.prompts)):
            noted = Noted()
            for origin, first in repeats.found():
                noted.add(origin, f"{origin} = {first.line if first.file == origin.file else first}")
            if noted:
                report.warnings[what] = noted
        if len(report.formats) == 1:  # one file need not be named
            (name,) = report.formats
            for noted in report.warnings.values():
                noted.examples = [text.removeprefix(f"{name}:") for text in noted.examples]
        for unit, parts in (("characters", self.characters), ("tokens", self.tokens)):
            if any(map(len, parts)):
                report.lengths.append(Lengths(unit, np.sort(np.concatenate(parts))))


def print_report(report: Report, console: Console | None = None) -> None:
    """The report for people; see `whet.data.report`."""
    from whet.data.report import show

    show(report, console)


def to_json(report: Report) -> Mapping[str, Any]:
    """The report for machines."""
    return {
        "path": report.path,
        "usable": report.usable,
        "problem": report.problem,
        "formats": report.formats,
        "kinds": dict(report.kinds),
        "rows": report.num_rows,
        "pictures": report.pictures.num,
        "ledger": report.ledger.to_json(),
        "lengths": {
            each.unit: {
                "min": int(each.sizes[0]),
                "median": each.quantile(0.5),
                "p95": each.quantile(0.95),
                "max": int(each.sizes[-1]),
            }
            for each in report.lengths
        },
        "empty": dict(report.empty),
        "bad_rows": _noted(report.bad_rows),
        "warnings": {what: _noted(noted) for what, noted in report.warnings.items()},
    }


def _noted(noted: Noted) -> dict[str, Any]:
    """Count and lines of all, and what is said of the first."""
    return noted.lines.to_json() | {"examples": noted.examples}
