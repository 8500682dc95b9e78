"""A prompt as whoever judges its answers reads it."""

from __future__ import annotations

from collections.abc import Sequence

from whet.schema.records import Message


def transcript(messages: Sequence[Message]) -> str:
    """A single question bare, several turns with their roles."""
    if len(messages) == 1:
        return messages[0].text
    return "\n\n".join(f"{message.role}: {message.text}" for message in messages)
