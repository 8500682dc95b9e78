"""Pictures of prompts on the page, small and inside it: a report stays one file."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from whet.data.thumbnail import thumbnail

MAX_PICTURES = 16
"""Of one prompt."""


def thumbnails(sources: Iterable[str]) -> tuple[str, ...]:
    """`data:` URLs of the pictures that can still be read."""
    return tuple(filter(None, map(thumbnail, islice(sources, MAX_PICTURES))))
