"""Rendered records to look at, the trained tokens marked: in colour, and by «» where colour cannot be seen.

Pictures are named where they stand; a page shows them small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

from whet.config.data import Data
from whet.data.ledger import Ledger
from whet.data.marked import Piece, token_pieces, turn_pieces
from whet.data.preview_page import Shown, write_page
from whet.data.reach import free
from whet.data.sources import places_of, stream_records
from whet.data.tokens import load_renderer
from whet.errors import UserError, printable
from whet.schema.records import Conversation, Message, Preference, Prompt, Ranking, Rating, Record, Scored, kind_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from whet.config.model import Vision
    from whet.data.render import Renderer

MOST_READ = 100_000
"""Records that are read to say how many there are."""
Section = tuple[str, list[Piece]]
"""A title and what stands under it."""


def preview(
    path: str,
    data: Data,
    tokenizer_path: str | None = None,
    num: int = 3,
    console: Console | None = None,
    page: Path | None = None,
    vision: Vision | None = None,
) -> None:
    """Print the first `num` records as training would see them; without a tokenizer, their turns.

    With `page` they go into an HTML file, their pictures as thumbnails. Raises DataError where the file cannot be read
    or the page exists, ModelError where the tokenizer cannot be used.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console(soft_wrap=True)
    if page is not None:
        free(page)
    renderer = load_renderer(tokenizer_path, data.system, vision) if tokenizer_path else None
    ledger = Ledger()
    records = stream_records(
        data, ("conversation", "preference", "rating", "ranking", "scored", "prompt"), ledger,
        places=places_of(data, {}, (path,)),
    )  # fmt: skip
    shown = [
        Shown(title=printable(f"{record.origin}  {kind_of(record)}"), sections=tuple(sections(record, renderer)))
        for record in islice(records, num)
    ]
    read = len(shown) + sum(1 for _ in islice(records, max(0, MOST_READ - len(shown))))
    formats = ", ".join(sorted(set(ledger.formats.values())))
    described, read_so_far = ledger.describe(), ledger.read
    beyond = f" of the first {read_so_far:,} rows (`whet data check` reads all)" if next(records, None) else ""
    summary = printable(f"{path}: {described}{beyond}; {formats}")
    if page is not None:
        write_page(page, summary, shown)
        console.print(f"{page}: {len(shown)} of {read} records", highlight=False, markup=False)
        return
    for one in shown:
        console.rule(Text(one.title))
        for title, pieces in one.sections:
            if title:
                console.print(title, style="bold", markup=False)
            console.print(coloured(pieces, plain=not console.is_terminal), highlight=False)
    console.print(summary, highlight=False, markup=False)
    if renderer is None:
        console.print("Shown are turns; given a checkpoint, the text is shown as its template writes it.", style="dim")


def coloured(pieces: Iterable[Piece], *, plain: bool) -> Text:
    """Trained pieces in green, and between «» where `plain`; pictures in cyan."""
    from rich.text import Text

    text = Text()
    for (trained, shows), group in groupby(pieces, key=lambda piece: (piece.trained, piece.picture is not None)):
        words = "".join(piece.text for piece in group)
        if trained:
            text.append(f"«{words}»" if plain else words, style="green")
        else:
            text.append(words, style="cyan" if shows else "dim")
    return text


def sections(record: Record, renderer: Renderer | None) -> Iterator[Section]:
    """Titles and marked text of a record."""
    if renderer is None:
        yield from _turn_sections(record)
        return
    try:
        yield from list(_token_sections(record, renderer))
    except UserError as error:
        yield f"cannot be rendered: {error}", []


def _token_sections(record: Record, renderer: Renderer) -> Iterator[Section]:
    match record:
        case Conversation():
            for row in renderer.conversations(record):
                yield "", token_pieces(renderer, row.ids, row.weights, row.pictures)
        case Prompt():
            asked = renderer.ask(record.messages, record.tools, origin=record.origin)
            yield "prompt", token_pieces(renderer, asked.prompt_ids, [0.0] * len(asked.prompt_ids), asked.pictures)
            yield from _reference(record)
        case Preference() | Rating() | Ranking() | Scored():
            group = renderer.group(record)
            yield "prompt", token_pieces(renderer, group.prompt_ids, [0.0] * len(group.prompt_ids), group.pictures)
            for index, title in _titles(record):
                ids = group.response_ids[index]
                yield title, token_pieces(renderer, ids, [1.0] * len(ids), ())


def _titles(record: Preference | Rating | Ranking | Scored) -> list[tuple[int, str]]:
    """Place and title of each answer, in the order shown: the best rank first."""
    match record:
        case Preference():
            return [(0, "chosen"), (1, "rejected")]
        case Rating():
            return [(0, f"label {'good' if record.label else 'bad'}")]
        case Ranking(ranks=ranks):
            return [(index, f"rank {ranks[index]:g}") for index in sorted(range(len(ranks)), key=ranks.__getitem__)]
        case Scored():
            return [(index, f"{record.kind} {value:g}") for index, value in enumerate(record.values)]


def _turn_sections(record: Record) -> Iterator[Section]:
    match record:
        case Conversation():
            yield "", _turns(record.messages, trained=True)
        case Prompt():
            yield "prompt", _turns(record.messages)
            yield from _reference(record)
        case Preference():
            yield "prompt", _turns(record.prompt)
            yield "chosen", _answer(record.chosen)
            yield "rejected", _answer(record.rejected)
        case Rating():
            yield "prompt", _turns(record.prompt)
            yield f"label {'good' if record.label else 'bad'}", _answer(record.response)
        case Ranking():
            yield "prompt", _turns(record.prompt)
            for rank, response in sorted(zip(record.ranks, record.responses, strict=True)):
                yield f"rank {rank:g}", [Piece(response, True)]
        case Scored():
            yield "prompt", _turns(record.prompt)
            for value, response in zip(record.values, record.responses, strict=True):
                yield f"{record.kind} {value:g}", [Piece(response, True)]


def _turns(messages: Iterable[Message], *, trained: bool = False) -> list[Piece]:
    """Turns with their roles, those of the assistant that have a weight marked where they are `trained`."""
    pieces: list[Piece] = []
    for message in messages:
        learnt = trained and message.role == "assistant" and message.weight > 0
        pieces += [Piece(f"{message.role}: ", learnt), *turn_pieces(message, trained=learnt), Piece("\n", learnt)]
    return pieces


def _answer(turns: Iterable[Message]) -> list[Piece]:
    return [piece for message in turns for piece in turn_pieces(message, trained=True)]


def _reference(record: Prompt) -> Iterator[Section]:
    if record.reference is not None:
        yield "reference, never shown to a model", [Piece(record.reference)]
