"""Rows with pictures as a stage trained on them: their text, what of it is trained, and where the pictures stand."""

from __future__ import annotations

from dataclasses import dataclass

from whet.report.pictures import thumbnails
from whet.report.words import cut
from whet.runs.files import read_jsonl
from whet.runs.reader import Row, StageView


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPiece:
    """Some text, or a picture with what it is called."""

    text: str
    trained: bool
    thumbnail: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRow:
    origin: str
    pieces: tuple[ShownPiece, ...]


def read_shown_rows(stage: StageView) -> list[ShownRow]:
    """Empty for a stage whose rows have no pictures."""
    rows = read_jsonl(stage.paths.pictures)
    return [ShownRow(origin=row["origin"], pieces=tuple(map(_piece, row["pieces"]))) for row in rows]


def _piece(piece: Row) -> ShownPiece:
    small = thumbnails((piece["picture"],)) if piece.get("picture") else ()
    return ShownPiece(text=cut(piece["text"]), trained=piece.get("trained", False), thumbnail=next(iter(small), None))
