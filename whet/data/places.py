"""Where pictures stand: in turns, in the text of a template, in token ids.

    turns   (image cat.png) What is this?
    text    <|vision_start|><|image_pad|><|vision_end|>What is this?
    ids     <|vision_start|> <|image_pad|> x 6 <|vision_end|> What ...

A placeholder that somebody wrote in words is no picture: a mark takes its place until ids are made of its letters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from whet.schema.pictures import Picture
from whet.schema.records import Conversation, Message, Preference, Prompt, Ranking, Rating, Record, Scored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKS = ("\ufdd0p\ufdd1", "\ufdd0v\ufdd1")
"""Stand for written placeholders, of pictures and of videos: made of code points that no text may hold."""


def pictures_in(messages: Iterable[Message]) -> list[str]:
    """Sources of all pictures of some turns, in order."""
    return [
        part.value
        for message in messages
        if not isinstance(message.content, str)
        for part in message.content
        if part.type == "image"
    ]


def pictures_of(record: Record) -> list[str]:
    """Sources of the pictures that a record asks about."""
    match record:
        case Conversation() | Prompt():
            return pictures_in(record.messages)
        case Preference() | Rating() | Ranking() | Scored():
            return pictures_in(record.prompt)


def token_text(tokenizer: PreTrainedTokenizerBase, index: int) -> str:
    """A token as texts have it; empty where there is none of this number."""
    text = tokenizer.convert_ids_to_tokens(index) if index < len(tokenizer) else None
    return text if isinstance(text, str) else ""


def guarded(words: str, marks: Mapping[str, str]) -> str:
    """What somebody said, with a mark for each placeholder in it."""
    for token, mark in marks.items():
        if token in words:
            words = words.replace(token, mark)
    return words


def expanded(ids: Sequence[int], pictures: Sequence[Picture], place_id: int) -> list[int]:
    """Ids with as many placeholders for each picture as it has tokens. There may be more pictures than `ids` reach."""
    following = iter(pictures)
    out: list[int] = []
    for token in ids:
        if token == place_id:
            out += [place_id] * next(following).num_tokens
        else:
            out.append(token)
    return out


def held(ids: Sequence[int], pictures: Sequence[Picture], place_id: int) -> tuple[Picture, ...]:
    """The first of the pictures: those whose placeholders stand in expanded `ids`."""
    left = int(np.count_nonzero(np.asarray(ids) == place_id))
    kept: list[Picture] = []
    for picture in pictures:
        left -= picture.num_tokens
        if left < 0:
            break
        kept.append(picture)
    return tuple(kept)


def widened(ids: Sequence[int], weights: Sequence[float], pictures: Sequence[Picture], place_id: int) -> list[float]:
    """The weights of `expanded` ids: no placeholder is trained."""
    following = iter(pictures)
    out: list[float] = []
    for token, weight in zip(ids, weights, strict=True):
        out += [0.0] * next(following).num_tokens if token == place_id else [weight]
    return out
