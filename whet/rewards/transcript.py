"""A prompt as whoever judges its answers reads it."""

from __future__ import annotations

from collections.abc import Sequence

from whet.data.places import pictures_in
from whet.schema.records import Message, Part, Prompt


def transcript(messages: Sequence[Message]) -> str:
    """A single question bare, several turns with their roles; `[image]` where a picture stands."""
    if len(messages) == 1:
        return messages[0].shown
    return "\n\n".join(f"{message.role}: {message.shown}" for message in messages)


def about(prompt: Prompt, words: str) -> Message:
    """What is asked about a prompt: its pictures, in their order, then the words."""
    pictures = pictures_in(prompt.messages)
    if not pictures:
        return Message("user", words)
    return Message("user", (*(Part("image", picture) for picture in pictures), Part("text", words)))


def images_of(prompt: Prompt) -> dict[str, list[str]]:
    """The column of a row whose question is about the prompt's pictures: they stand before it."""
    pictures = pictures_in(prompt.messages)
    return {"images": pictures} if pictures else {}
