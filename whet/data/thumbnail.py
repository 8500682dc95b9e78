"""Small copies of pictures for pages: JPEG in a `data:` URL, so that a page needs no file beside it."""

from __future__ import annotations

import base64
import io
from functools import lru_cache

from whet.data.decode import BadPicture, decoded
from whet.data.picture_files import bytes_of, signature

SIDE = 112
"""Longest side in pixels."""
_PREFIX = "data:image/jpeg;base64,"


def thumbnail(source: str, side: int = SIDE) -> str | None:
    """A `data:` URL of letters, digits and `+/=` alone, whatever the file holds; None for what cannot be read."""
    stamp = signature(source)
    return _small(source, side) if stamp is None else _kept(source, side, stamp)


@lru_cache(maxsize=512)
def _kept(source: str, side: int, stamp: tuple[int, int]) -> str | None:
    """Made again where the file has changed."""
    return _small(source, side)


def _small(source: str, side: int) -> str | None:
    try:
        image = decoded(bytes_of(source))
    except BadPicture:
        return None
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return _PREFIX + base64.b64encode(buffer.getvalue()).decode()


def short_name(source: str) -> str:
    """What a person calls a picture: the name of its file."""
    return "in the row" if source.startswith("data:") else source.replace("\\", "/").rpartition("/")[2]
