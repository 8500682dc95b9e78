"""Rendered records to look at, the trained tokens marked: in colour, and by «» where colour cannot be seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import TYPE_CHECKING

from whet.config.data import Data
from whet.data.sources import read_records
from whet.data.tokens import load_tokenizer
from whet.errors import UserError
from whet.schema.records import Conversation, Message, Preference, Prompt, Ranking, Rating, Record, Scored, kind_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from whet.data.render import Renderer

Piece = tuple[str, bool]
"""Some text, and whether it is trained."""


def preview(
    path: str, data: Data, tokenizer_path: str | None = None, num: int = 3, console: Console | None = None
) -> None:
    """Print the first `num` records as training would see them; without a tokenizer, their turns.

    Raises DataError where the file cannot be read, ModelError where the tokenizer cannot be used.
    """
    from rich.console import Console

    console = console or Console(soft_wrap=True)
    renderer = None
    if tokenizer_path:
        from whet.data.render import Renderer

        renderer = Renderer(load_tokenizer(tokenizer_path), system=data.system)
    records, ledger = read_records(
        data, ("conversation", "preference", "rating", "ranking", "scored", "prompt"), files=(path,)
    )
    for record in islice(records, num):
        console.rule(f"{record.origin}  {kind_of(record)}")
        for title, pieces in sections(record, renderer):
            if title:
                console.print(title, style="bold")
            console.print(marked(pieces, plain=not console.is_terminal), highlight=False)
    console.print(
        f"{path}: {ledger.describe()}; {', '.join(sorted(set(ledger.formats.values())))}", highlight=False, markup=False
    )
    if renderer is None:
        console.print("Shown are turns; given a checkpoint, the text is shown as its template writes it.", style="dim")


def marked(pieces: Iterable[Piece], *, plain: bool) -> Text:
    """Trained pieces in green, and between «» where `plain`."""
    from rich.text import Text

    text = Text()
    for trained, group in groupby(pieces, key=lambda piece: piece[1]):
        words = "".join(word for word, _ in group)
        if trained:
            text.append(f"«{words}»" if plain else words, style="green")
        else:
            text.append(words, style="dim")
    return text


def sections(record: Record, renderer: Renderer | None) -> Iterator[tuple[str, list[Piece]]]:
    """Titles and marked text of a record."""
    if renderer is None:
        yield from _turn_sections(record)
        return
    try:
        yield from _token_sections(record, renderer)
    except UserError as error:
        yield f"cannot be rendered: {error}", []


def _token_sections(record: Record, renderer: Renderer) -> Iterator[tuple[str, list[Piece]]]:
    decode = renderer.template.tokenizer.decode
    match record:
        case Conversation():
            for row in renderer.conversations(record):
                runs = groupby(zip(row.ids, row.weights, strict=True), key=lambda pair: pair[1] > 0)
                yield "", [(str(decode([token for token, _ in run])), trained) for trained, run in runs]
        case Prompt():
            yield "prompt", [(str(decode(renderer.prompt(record.messages, record.tools, origin=record.origin))), False)]
            yield from _reference(record)
        case Preference() | Rating() | Ranking() | Scored():
            group = renderer.group(record)
            yield "prompt", [(str(decode(group.prompt_ids)), False)]
            for index, title in _titles(record):
                yield title, [(str(decode(group.response_ids[index])), True)]


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


def _turn_sections(record: Record) -> Iterator[tuple[str, list[Piece]]]:
    match record:
        case Conversation():
            yield (
                "",
                [(f"{message.role}: {_words(message)}\n", message.role == "assistant") for message in record.messages],
            )
        case Prompt():
            yield "prompt", _context(record.messages)
            yield from _reference(record)
        case Preference():
            yield "prompt", _context(record.prompt)
            yield "chosen", [(_words(message), True) for message in record.chosen]
            yield "rejected", [(_words(message), True) for message in record.rejected]
        case Rating():
            yield "prompt", _context(record.prompt)
            yield f"label {'good' if record.label else 'bad'}", [(_words(message), True) for message in record.response]
        case Ranking():
            yield "prompt", _context(record.prompt)
            for rank, response in sorted(zip(record.ranks, record.responses, strict=True)):
                yield f"rank {rank:g}", [(response, True)]
        case Scored():
            yield "prompt", _context(record.prompt)
            for value, response in zip(record.values, record.responses, strict=True):
                yield f"{record.kind} {value:g}", [(response, True)]


def _context(messages: Iterable[Message]) -> list[Piece]:
    return [(f"{message.role}: {_words(message)}\n", False) for message in messages]


def _reference(record: Prompt) -> Iterator[tuple[str, list[Piece]]]:
    if record.reference is not None:
        yield "reference, never shown to a model", [(record.reference, False)]


def _words(message: Message) -> str:
    if isinstance(message.content, str):
        words = message.content
    else:
        words = "".join(part.value if part.type == "text" else f"[picture {part.value}]" for part in message.content)
    return words + "".join(f"\n[call {call['name']} {call['arguments']}]" for call in message.tool_calls)
