"""A picture's bytes -> upright pixels in RGB, as a person sees it; whatever cannot be that is refused in a few words.

What a file may be: PNG, JPEG, WebP, GIF, BMP or TIFF, of at most `MAX_PIXELS`, decided by its header before a pixel is
decoded. A palette, greys, CMYK and 16 bits become 8-bit RGB; what is transparent lies on white; of several frames the
first is taken; the rotation that a camera wrote into EXIF is applied. None of this asks for torch.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats read. Others are refused by name alone: some of Pillow's readers start programs (EPS)."""
MAX_PIXELS = 100_000_000
"""Most pixels of a picture, width times height: 300 MB once decoded."""
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)
"""The EXIF tag that says how the camera was held, and its values that swap width and height."""
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
"""Its values -> what turns the picture upright."""


class BadPicture(Exception):
    """A picture that cannot be used: what is wrong, what was found, what to do."""

    def __init__(self, problem: str, found: str | None = None, fix: str | None = None) -> None:
        super().__init__(problem)
        self.problem, self.found, self.fix = problem, found, fix


def size_of(data: bytes) -> tuple[int, int]:
    """Height and width of the upright picture. All of it is decoded once, so that whatever `decoded` refuses is found
    here.

    Raises BadPicture.
    """
    image = opened(data)
    width, height = image.size
    with _reading():
        image.draft("RGB", (1, 1))  # JPEG: every byte is read, an eighth of the pixels is computed
        image.load()
        orientation = image.getexif().get(_ORIENTATION)
        _rgb(image.crop((0, 0, 1, 1)))  # one pixel shows whether its kind can be seen
    return (width, height) if orientation in _TURNED else (height, width)


def decoded(data: bytes) -> Image:
    """The upright picture in RGB. Raises BadPicture."""
    from PIL.Image import Transpose

    image = opened(data)
    with _reading():
        image.load()
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))  # nothing else of the EXIF can be at fault
        return _rgb(image.transpose(Transpose[turn]) if turn else image)


def as_seen(data: bytes) -> bytes:
    """Bytes in which any reader sees what `decoded` sees: the same ones where nothing has to be turned, laid on white
    or left out, else those of a PNG. Raises BadPicture."""
    image = opened(data)
    with _reading():
        plain = image.mode in ("RGB", "L") and not image.has_transparency_data and getattr(image, "n_frames", 1) == 1
        plain = plain and image.format in ("PNG", "JPEG", "WEBP")
        if plain and image.getexif().get(_ORIENTATION, 1) == 1:
            return data
    buffer = io.BytesIO()
    decoded(data).save(buffer, format="png")
    return buffer.getvalue()


def opened(data: bytes) -> Image:
    """The picture, its header read and nothing else. Raises BadPicture where it is none, or none of the kinds read."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise BadPicture("the picture is an empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(str(error)) from None
    except UnidentifiedImageError:
        raise BadPicture(
            "the picture is none that can be read", fix=f"use {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        ) from None
    except Exception as error:  # a reader given hostile bytes may raise anything
        raise BadPicture("the picture has a broken header", found=_words(error), fix="save it anew") from None
    width, height = image.size
    if not width or not height:
        raise BadPicture("the picture has no pixels", found=f"{width}×{height}")
    if width * height > MAX_PIXELS:
        raise _too_large(f"{width}×{height}")
    if image.mode == "F":
        raise BadPicture("the picture has real numbers for pixels", found="mode F", fix="save it with 8 bits a channel")
    return image


@contextmanager
def _reading() -> Iterator[None]:
    """Raises BadPicture where the file ends too early, or is damaged."""
    try:
        yield
    except BadPicture:
        raise
    except Exception as error:  # a decoder given hostile bytes may raise anything
        raise BadPicture("the picture is damaged or cut short", found=_words(error), fix="save it anew") from None


def _rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        deep = image.mode != "I" or values.max() > 255
        image = Image.fromarray(np.clip(values >> 8 if deep else values, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        paper = Image.new("RGBA", seen.size, "white")
        return Image.alpha_composite(paper, seen).convert("RGB")
    return image.convert("RGB")


def _too_large(found: str) -> BadPicture:
    return BadPicture(
        f"the picture has more than {MAX_PIXELS:,} pixels", found=found, fix="scale it down: models see far fewer"
    )


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:80]
