"""Records to look at as one HTML file that needs nothing beside it: texts escaped, pictures as thumbnails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from whet.data.marked import Piece
from whet.data.thumbnail import thumbnail
from whet.errors import DataError

STYLE = """\
body { font: 14px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h2 { font-size: 1rem; border-top: 1px solid #ccc; padding-top: 1rem; } h3 { font-size: .9rem; margin: .8rem 0 .2rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .6rem; border-radius: 4px; }
mark { background: #d7f0d8; color: inherit; } img { vertical-align: middle; margin: 2px; border: 1px solid #ccc; }
figcaption, .about { color: #666; } figure { display: inline-block; margin: 0 4px; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One record."""

    title: str
    sections: tuple[tuple[str, list[Piece]], ...]


def write_page(path: Path, summary: str, records: Sequence[Shown]) -> None:
    """Raises DataError where it cannot be written."""
    try:
        path.write_text(page(summary, records), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise DataError("cannot write", file=str(path), found=error.strerror or str(error)) from error


def page(summary: str, records: Sequence[Shown]) -> str:
    """The whole file; trained text is marked in green."""
    body = "\n".join(map(_record, records))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(summary)}</title>\n'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>Rows as training sees them</h1>\n"
        f'<p class="about">{escape(summary)}. Green is trained.</p>\n{body}\n</body></html>\n'
    )


def _record(record: Shown) -> str:
    parts = [f"<h2>{escape(record.title)}</h2>"]
    for title, pieces in record.sections:
        parts += [f"<h3>{escape(title)}</h3>"] if title else []
        parts.append(f"<pre>{''.join(map(_piece, pieces))}</pre>" if pieces else "")
    return "\n".join(parts)


def _piece(piece: Piece) -> str:
    words = escape(piece.text)
    if piece.picture is not None:
        small = thumbnail(piece.picture)
        image = f'<img src="{small}" alt="">' if small else ""
        return f"<figure>{image}<figcaption>{words}</figcaption></figure>"
    return f"<mark>{words}</mark>" if piece.trained else words
