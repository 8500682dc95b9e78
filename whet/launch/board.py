"""What the ranks of a Ray job tell whoever started it: their lines for the terminal, and the mistake that ends the run.

A board is an actor; a rank's standard output and error are written to it, so that a person sees what a run on this
machine would show, and nothing of Ray's own.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from whet.errors import UserError

Channel = Literal["stdout", "stderr"]


@dataclass(frozen=True, slots=True)
class Said:
    """Text that a rank has written."""

    channel: Channel
    text: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A mistake of the user's that a rank has found."""

    error: UserError
    told: bool
    """Whether the rank has told it itself, as several ranks do."""


class Board:
    """The actor."""

    def __init__(self) -> None:
        self._said: list[Said] = []
        self._refusal: Refusal | None = None
        self._attempts = 0

    def begin(self) -> int:
        """The first rank starts to work: how often one has, with this time."""
        self._attempts += 1
        return self._attempts

    def say(self, said: Said) -> None:
        self._said.append(said)

    def refuse(self, refusal: Refusal) -> None:
        """The run cannot go on, and starting it again would not help. The first reason stays."""
        self._refusal = self._refusal or refusal

    def refusal(self) -> Refusal | None:
        return self._refusal

    def hear(self) -> list[Said]:
        """What was said since the last time."""
        said, self._said = self._said, []
        return said


class Telling(io.TextIOBase):
    """A text stream that hands on what is written to it. It is no terminal."""

    def __init__(self, channel: Channel, say: Callable[[Said], object]) -> None:
        self._channel: Channel = channel
        self._say = say

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if text:
            self._say(Said(self._channel, text))
        return len(text)
