"""Records with more pictures than a plan allows: some are left out, evenly spaced, the first and the last kept.

    kept_places(8, 4) -> [0, 2, 5, 7]

With a picture goes its place in the text. Which are kept follows from the numbers alone: both answers of a pair, and
every run, see the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from whet.data.places import pictures_in
from whet.schema.records import Conversation, Message, Part, Preference, Prompt, Ranking, Rating, Record, Scored


def kept_places(num: int, most: int) -> list[int]:
    """Places of at most `most` of `num` things, spread evenly from the first to the last; the first of one alone."""
    if num <= most:
        return list(range(num))
    if most == 1:
        return [0]
    gaps = most - 1
    return [(2 * i * (num - 1) + gaps) // (2 * gaps) for i in range(most)]


Kind = TypeVar("Kind", bound=Record)


def thinned(record: Kind, most: int) -> Kind:
    """The record with at most `most` pictures in what is asked; the record itself where it has no more."""
    match record:
        case Conversation() | Prompt():
            messages = _thinned(record.messages, most)
            return record if messages is None else replace(record, messages=messages)
        case Preference() | Rating() | Ranking() | Scored():
            prompt = _thinned(record.prompt, most)
            return record if prompt is None else replace(record, prompt=prompt)


def _thinned(messages: Sequence[Message], most: int) -> tuple[Message, ...] | None:
    num = len(pictures_in(messages))
    if num <= most:
        return None
    kept, seen = set(kept_places(num, most)), 0
    left: list[Message] = []
    for message in messages:
        if isinstance(message.content, str):
            left.append(message)
            continue
        parts: list[Part] = []
        for part in message.content:
            if part.type == "image":
                seen += 1
                if seen - 1 in kept:
                    parts.append(part)
            else:
                parts.append(part)
        left.append(replace(message, content=_joined(parts)))
    return tuple(left)


def _joined(parts: Sequence[Part]) -> str | tuple[Part, ...]:
    """Parts as a message holds them: texts that have come to stand side by side are one; plain text is no part."""
    joined: list[Part] = []
    for part in parts:
        if joined and part.type == joined[-1].type == "text":
            joined[-1] = Part("text", joined[-1].value + part.value)
        else:
            joined.append(part)
    return "".join(part.value for part in joined) if all(part.type == "text" for part in joined) else tuple(joined)
