"""Items of pairwise preference data: two candidates, what they were made for, and which is better.

    {"caption": "two red stars", "images": ["a.png", "b.png"], "better": 2}
    {"question": "What is this?", "images": ["cat.png"], "answers": ["A cat.", "A dog."], "better": 1}

Two pictures are compared where a row has no answers, else two answers, which may be about pictures. A row may come with
a reasoned judgement in the form of `whet.data.verdict`. All other columns go along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from whet.data.files import read_file
from whet.data.row import Row, kind_of_value
from whet.data.verdict import TIE, Verdict, parse_verdict
from whet.errors import DataError
from whet.schema.records import Origin

QUESTION = ("question", "caption", "prompt", "problem", "query", "instruction")
ANSWERS = ("answers", "responses")
BETTER = ("better", "preference", "winner", "solution", "label")
JUDGEMENT = ("judgement", "reasoning", "output")
"""Columns that hold a part of an item, the proper name first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Two candidates and the truth about them."""

    subject: Literal["Image", "Answer"]
    question: str
    shown: tuple[str, ...] = ()
    """Pictures that belong to the question, as the row names them."""
    candidates: tuple[str, str]
    """Pictures as the row names them, or texts."""
    better: int
    """1, 2 or TIE."""
    judgement: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin

    @property
    def name(self) -> str:
        """What makes two rows the same item: all but the order of the candidates."""
        parts = repr((self.subject, self.question, self.shown, sorted(self.candidates)))
        return sha256(parts.encode()).hexdigest()[:16]

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.subject, self.better)

    def swapped(self) -> Item:
        """The same item, its candidates the other way round. A judgement speaks of the old order, and goes."""
        first, second = self.candidates
        return replace(self, candidates=(second, first), better=self.verdict.swapped.better, judgement=None)


def read_items(files: Sequence[str]) -> Iterator[Item]:
    """Items in the order of the files. Raises DataError for the first row that is none."""
    for name in files:
        if not Path(name).is_file():
            raise DataError("no such file", file=name)
        for raw in read_file(Path(name), name):
            if isinstance(raw, DataError):
                raise raw
            origin, values = raw
            if not isinstance(values, Mapping):
                raise DataError("is a text, not an object", file=origin.file, line=origin.line)
            yield read_item(Row(values, origin))


def read_item(row: Row) -> Item:
    """One item. Raises DataError where the row lacks a part of it."""
    question, images = row.text(row.which(QUESTION)), _images(row)
    answers = _answers(row)
    candidates, field_name = (images, "images") if answers is None else (answers, "answers")
    if len(candidates) != 2:
        raise row.error(
            f"{len(candidates)} candidates, where two are compared", field=field_name,
            fix="give two `images` made for a `caption`, or two `answers` to a `question`",
        )  # fmt: skip
    if candidates[0] == candidates[1]:
        raise row.error("a candidate cannot be better than itself", field=field_name, found=candidates[0])
    better = 1 if "chosen" in row and answers is not None else _better(row, "Image" if answers is None else "Answer")
    judgement = row.which(JUDGEMENT)
    return Item(
        subject="Image" if answers is None else "Answer", question=question,
        shown=() if answers is None else tuple(images), candidates=(candidates[0], candidates[1]), better=better,
        judgement=row.text(judgement) if judgement in row else None, columns=row.rest(), origin=row.origin,
    )  # fmt: skip


def _images(row: Row) -> list[str]:
    value = row.opened(row.maybe("images"), "images") or []
    if not isinstance(value, list) or not all(isinstance(path, str) and path for path in value):
        raise row.error("is no list of paths", field="images", found=kind_of_value(value))
    return value


def _answers(row: Row) -> list[str] | None:
    """The answers compared, the chosen one first where a row says so; None where pictures are."""
    if "chosen" in row and "rejected" in row:
        return [row.text("chosen"), row.text("rejected")]
    name = row.which(ANSWERS)
    return [row.as_text(value, name) for value in row.listed(name)] if name in row else None


def _better(row: Row, subject: str) -> int:
    """1, 2 or TIE, from a number, "tie", or the words of a verdict."""
    name = row.which(BETTER)
    value = row.take(name)
    if not isinstance(value, bool):
        match value:
            case 1 | 2 | "1" | "2":
                return int(value)
            case 0 | "0" | "tie":
                return TIE
            case str() if (verdict := parse_verdict(value)) is not None and verdict.subject == subject:
                return verdict.better
    raise row.error(
        "does not say which is better", field=name, found=value, fix=f"write 1, 2, tie, or `{subject} 1 is better`"
    )
