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

from whet.config.data import Data
from whet.data.decode import BadPicture
from whet.data.files import read_file
from whet.data.images import IMAGE, row_images
from whet.data.locate import image_folders
from whet.data.picture_files import bytes_of, complaint, identity
from whet.data.reach import reaching
from whet.data.row import Row
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
    """Pictures that belong to the question: files or `data:` URLs."""
    candidates: tuple[str, str]
    """Pictures, or texts."""
    better: int
    """1, 2 or TIE."""
    judgement: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin

    @property
    def name(self) -> str:
        """What makes two rows the same item: all but the order of the candidates. A picture is its bytes."""
        shown = [identity(picture) for picture in self.shown]
        parts = repr((self.subject, self.question, shown, sorted(self.contents)))
        return sha256(parts.encode()).hexdigest()[:16]

    @property
    def contents(self) -> tuple[str, str]:
        """The candidates, to compare with those of other rows: a picture is its bytes, whatever its path."""
        first, second = self.candidates
        return (identity(first), identity(second)) if self.subject == "Image" else (first, second)

    @property
    def winner(self) -> str | None:
        """The better candidate in whatever place it stands, to compare with that of a row of the same name."""
        return None if self.better == TIE else self.contents[self.better - 1]

    @property
    def pictures(self) -> tuple[str, ...]:
        return self.candidates if self.subject == "Image" else self.shown

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.subject, self.better)

    def swapped(self) -> Item:
        """The same item, its candidates the other way round. A judgement speaks of the old order, and goes."""
        first, second = self.candidates
        return replace(self, candidates=(second, first), better=self.verdict.swapped.better, judgement=None)


def read_items(files: Sequence[str], image_folder: str | None = None) -> Iterator[Item]:
    """Items in the order of the files, their pictures found as by a plan: in `image_folder` where that is given,
    else in the folder of the file, else in the working directory.

    Raises DataError for the first row that is none, or whose picture cannot be read.
    """
    for name in files:
        with reaching(name):
            if not Path(name).is_file():
                raise DataError("no such file", file=name)
        folders = image_folders(Data(image_folder=image_folder), Path(name))
        for raw in read_file(Path(name), name):
            if isinstance(raw, DataError):
                raise raw
            origin, values = raw
            if not isinstance(values, Mapping):
                raise DataError("is a text, not an object", file=origin.file, line=origin.line)
            item = read_item(Row(values, origin, folders=folders))
            for picture in item.pictures:
                _check_readable(picture, origin)
            yield item


def read_item(row: Row) -> Item:
    """One item. Raises DataError where the row lacks a part of it."""
    images, answers = row_images(row), _answers(row)
    asked = row.which(QUESTION)
    question = row.text(asked)
    candidates, field_name = (images or [], "images") if answers is None else (answers, "answers")
    if len(candidates) != 2:
        raise row.error(
            f"{len(candidates)} candidates, where two are compared", field=field_name,
            fix="give two `images` made for a `caption`, or two `answers` to a `question`",
        )  # fmt: skip
    judgement = row.which(JUDGEMENT)
    judged = row.text(judgement) if judgement in row else None
    if images is not None:
        _check_marks(row, asked, question, num=len(images) if answers is not None else 0)
        for name, text in [*((field_name, answer) for answer in answers or ()), (judgement, judged or "")]:
            _check_marks(row, name, text, num=0)
    better = 1 if "chosen" in row and answers is not None else _better(row, "Image" if answers is None else "Answer")
    item = Item(
        subject="Image" if answers is None else "Answer", question=question,
        shown=() if answers is None else tuple(images or ()), candidates=(candidates[0], candidates[1]), better=better,
        judgement=judged, columns=row.rest(), origin=row.origin,
    )  # fmt: skip
    if item.contents[0] == item.contents[1]:
        raise row.error("a candidate cannot be better than itself", field=field_name, found=candidates[0])
    return item


def _check_readable(picture: str, origin: Origin) -> None:
    """Raises DataError where a picture is not there."""
    if identity(picture) != picture:
        return
    try:
        bytes_of(picture)
    except BadPicture as bad:
        bad.fix = bad.fix and "mend its path, or say where pictures lie by --image-folder"
        raise complaint(bad, picture, origin) from None


def _check_marks(row: Row, name: str, text: str, *, num: int) -> None:
    """A text of a row with pictures may have no mark, or one for each of `num`: any other takes a picture that belongs
    elsewhere. Raises DataError."""
    if (marks := text.count(IMAGE)) not in (0, num):
        raise row.error(
            f"{marks} {IMAGE} marks, where {num} pictures belong", field=name, found=text,
            fix=f"write {IMAGE} in the question once for each of its pictures, or nowhere"
            if num else f"remove {IMAGE}: the pictures are put where they belong",
        )  # fmt: skip


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
            case "tie":
                return TIE
            case 0 | "0":
                raise row.error(
                    "0 may be the first or a tie", field=name, found=value,
                    fix="write 1 where the first is better, 2 where the second is, and tie where neither is",
                )  # fmt: skip
            case str() if (verdict := parse_verdict(value)) is not None and verdict.subject == subject:
                return verdict.better
    raise row.error(
        "does not say which is better", field=name, found=value, fix=f"write 1, 2, tie, or `{subject} 1 is better`"
    )
