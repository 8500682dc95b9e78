"""What is in a file, and what is wrong with it, before any model is loaded: the functions behind `whet data`.

    report = check("train.jsonl", Data(), None)
    print_report(report)

Works without torch; the tokens are counted only where a tokenizer is given.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from whet.config.data import Data, Source
from whet.data.convert import convert
from whet.data.formats import kind_for, read_row
from whet.data.ledger import Ledger
from whet.data.lengths import Lengths
from whet.data.locate import locate, read_place
from whet.data.picture_check import PictureCheck
from whet.data.preferences import NothingToLearn
from whet.data.preview import preview
from whet.data.row import Row
from whet.data.sources import Opened, fewer_pictures, open_rows
from whet.data.split import prompt_key
from whet.data.tokens import LengthOf, load_renderer, texts_of
from whet.errors import DataError, UserError
from whet.schema.records import Preference, Record, RecordKind, kind_of

if TYPE_CHECKING:
    from rich.console import Console

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
    bad_rows: list[str] = field(default_factory=list)
    """Every row that cannot be read: place, field, what was found, what to do."""
    warnings: dict[str, list[str]] = field(default_factory=dict)
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

    def warn(self, what: str, where: object) -> None:
        self.warnings.setdefault(what, []).append(str(where))


def check(path: str, data: Data, tokenizer_path: str | None = None) -> Report:
    """Read every row and report. Never raises for what is wrong with the data: that is `problem` and `bad_rows`.

    Raises ModelError where the tokenizer cannot be loaded.
    """
    length_of = LengthOf(load_renderer(tokenizer_path, data.system)) if tokenizer_path else None
    report = Report(
        path=path, max_length=data.max_length, max_images=data.max_images, drops_bad_rows=data.on_bad_row == "drop"
    )
    seen = _Seen()
    records: list[Record] = []
    try:
        place = locate(Source(path=path), data, {})
        for rows in read_place(place, report.ledger):
            opened = open_rows(rows, place)
            report.formats[opened.name] = opened.format
            records += _records(opened, report, seen)
    except UserError as error:
        report.problem = str(error)
    if report.problem is None and not records:
        report.problem = f"{path}: not one of {report.num_rows} rows can be used"
    _duplicates(records, seen, report)
    _suspicions(records, report)
    if records:
        report.lengths.append(Lengths("characters", tuple(sorted(_characters(record) for record in records))))
        if length_of is not None:
            _tokens(records, length_of, report)
    return report


@dataclass(slots=True)
class _Seen:
    """Rows by content, and how often each column has a value."""

    rows: dict[str, list[int]] = field(default_factory=dict)
    filled: Counter[str] = field(default_factory=Counter)
    num: int = 0


def _records(opened: Opened, report: Report, seen: _Seen) -> list[Record]:
    kind = kind_for(opened.format, ANY_KIND) if opened.format != "auto" else None
    records: list[Record] = []
    for row in opened.rows:
        report.num_rows += 1
        if isinstance(row, DataError):
            _refuse(row, report)
            continue
        _note_columns(row, seen)
        try:
            made = read_row(row, opened.format, kind or "prompt")
        except NothingToLearn as reason:
            report.ledger.refuse(str(reason), row.origin)
            continue
        except DataError as error:
            _refuse(error, report)
            continue
        for record in made:
            report.ledger.keep(record.origin)
            report.kinds[kind_of(record)] += 1
            if report.max_images is not None:
                record = fewer_pictures(record, report.max_images, report.ledger)
            if (bad := report.pictures.problem(record)) is not None:
                report.bad_rows.append(str(bad))
                report.ledger.drop(bad.problem, record.origin, str(bad))
            else:
                records.append(record)
    report.empty = Counter({name: seen.num - count for name, count in seen.filled.items() if count < seen.num})
    return records


def _refuse(error: DataError, report: Report) -> None:
    report.bad_rows.append(str(error))
    report.ledger.refuse_error(error)


def _note_columns(row: Row, seen: _Seen) -> None:
    seen.num += 1
    for name, value in row.values.items():
        if value not in (None, "", [], {}) and not (isinstance(value, str) and not value.strip()):
            seen.filled[name] += 1
    content = json.dumps(row.values, sort_keys=True, ensure_ascii=False, default=str)
    seen.rows.setdefault(content, []).append(row.origin.line)


def _duplicates(records: Sequence[Record], seen: _Seen, report: Report) -> None:
    for lines in seen.rows.values():
        for line in lines[1:]:
            report.warn("the same row again", f"{line} = {lines[0]}")
    prompts: dict[str, list[int]] = {}
    for record in records:
        prompts.setdefault(prompt_key(record), []).append(record.origin.line)
    for lines in prompts.values():
        for line in lines[1:]:
            report.warn("the same prompt again", f"{line} = {lines[0]}")


def _suspicions(records: Sequence[Record], report: Report) -> None:
    for record in records:
        if isinstance(record, Preference) and record.chosen == record.rejected:
            report.warn("chosen equals rejected: nothing to learn", record.origin.line)


def _characters(record: Record) -> int:
    messages, answers = texts_of(record)
    return sum(len(message.text) for message in messages) + sum(len(answer) for answer in answers)


def _tokens(records: Sequence[Record], length_of: LengthOf, report: Report) -> None:
    """Count tokens as training would, and name what the checkpoint's template refuses and what is too long."""
    sizes = []
    if length_of.folds_system and any(turns and turns[0].role == "system" for turns, _ in map(texts_of, records)):
        report.ledger.note("the checkpoint's template takes no system turn: its text begins the first question instead")
    for record in records:
        try:
            total, prompt = length_of(record)
        except UserError as error:
            report.warn(f"cannot be rendered: {error.problem}", record.origin.line)
            continue
        sizes.append(total)
        if prompt >= report.max_length:
            report.warn(f"prompt alone fills max_length {report.max_length}", f"{record.origin.line} ({prompt} tokens)")
        elif total > report.max_length:
            report.warn(f"longer than max_length {report.max_length}", f"{record.origin.line} ({total} tokens)")
        if length_of.has_special(record):
            report.warn("the text holds special tokens of the checkpoint", record.origin.line)
    if sizes:
        report.lengths.append(Lengths("tokens", tuple(sorted(sizes))))


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
                "min": each.sizes[0],
                "median": each.quantile(0.5),
                "p95": each.quantile(0.95),
                "max": each.sizes[-1],
            }
            for each in report.lengths
        },
        "empty": dict(report.empty),
        "bad_rows": report.bad_rows,
        "warnings": report.warnings,
    }
