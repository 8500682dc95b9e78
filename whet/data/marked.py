"""Rendered rows as text with marks: which tokens are trained, and where pictures stand.

    <|im_start|>user
    <|vision_start|>[image 2×3 = 6 tokens cat.png]<|vision_end|>What is this?<|im_end|> ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from whet.data.render import Renderer
from whet.data.thumbnail import short_name
from whet.schema.pictures import Picture
from whet.schema.records import Message


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of a row."""

    text: str
    trained: bool = False
    picture: str | None = None
    """The source of the picture that stands here; `text` says in words that it does."""


def token_pieces(
    renderer: Renderer, ids: Sequence[int], weights: Sequence[float], pictures: Sequence[Picture]
) -> list[Piece]:
    """A row's ids decoded, each picture as one piece."""
    decode, place, following = renderer.template.tokenizer.decode, renderer.place_id, iter(pictures)
    pieces: list[Piece] = []
    rest = list(zip(ids, weights, strict=True))
    while rest:
        if pictures and rest[0][0] == place:
            picture = next(following)
            pieces.append(Piece(described(picture), picture=picture.source))
            rest = rest[picture.num_tokens :]
            continue
        end = next((i for i, (token, _) in enumerate(rest) if pictures and token == place), len(rest))
        for trained, run in groupby(rest[:end], key=lambda pair: bool(pair[1] > 0)):
            pieces.append(Piece(str(decode([token for token, _ in run])), trained))
        rest = rest[end:]
    return pieces


def described(picture: Picture) -> str:
    """`[image 2×3 = 6 tokens cat.png]`: rows times columns."""
    grid = f"{picture.grid[0]}×{picture.grid[1]} = " if picture.grid else ""
    tokens = f"{picture.num_tokens} token{'s' if picture.num_tokens != 1 else ''}"
    return f"[image {grid}{tokens} {short_name(picture.source)}]"


def turn_pieces(message: Message, *, trained: bool = False) -> Iterator[Piece]:
    """What a turn says and shows, for whoever has no checkpoint."""
    if isinstance(message.content, str):
        yield Piece(message.content, trained)
    else:
        for part in message.content:
            if part.type == "text":
                yield Piece(part.value, trained)
            else:
                yield Piece(f"[image {short_name(part.value)}]", picture=part.value)
    for call in message.tool_calls:
        yield Piece(f"\n[call {call['name']} {call['arguments']}]", trained)
