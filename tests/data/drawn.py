"""Pictures drawn for tests, as files and as bytes, and the files that are none."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw


def drawing(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture whose parts differ, so that turning or cropping it shows."""
    image = Image.new("RGB", (width, height), (200, 30 + seed % 200, 60))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width // 2, height // 3), fill=(10, 20, 250))
    draw.ellipse((width // 2, height // 2, width - 1, height - 1), fill=(20, 240, 30))
    return image.convert(mode)


def bytes_of_drawing(width: int = 90, height: int = 70, format: str = "PNG", seed: int = 0, **options: Any) -> bytes:
    buffer = io.BytesIO()
    drawing(width, height, seed=seed).save(buffer, format=format, **options)
    return buffer.getvalue()


def draw(path: Path, width: int = 90, height: int = 70, *, seed: int = 0, **options: Any) -> Path:
    """A file with a drawing; its suffix says the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing(width, height, seed=seed).save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be of this size and holds a few bytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
