"""Pictures of every kind become upright RGB pixels, and what is none is refused by its header or when it is read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.data.drawn import bytes_of_drawing, drawing, png_header
from whet.data.decode import MAX_PIXELS, BadPicture, decoded, size_of


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = decoded(data)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats(format: str) -> None:
    data = bytes_of_drawing(90, 70, format)
    assert size_of(data) == (70, 90)
    distance = np.abs(pixels(data).astype(int) - np.asarray(drawing(90, 70)).astype(int)).mean()
    assert distance < 8


def test_a_camera_that_was_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by a quarter
    data = saved(drawing(60, 40), "JPEG", exif=exif, quality=95)
    assert size_of(data) == (60, 40)
    upright = np.asarray(drawing(60, 40).rotate(-90, expand=True)).astype(int)
    assert np.abs(pixels(data).astype(int) - upright).mean() < 8


def test_what_is_transparent_lies_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((0, 0), (0, 0, 255, 255))
    found = pixels(saved(clear))
    assert found[0, 0].tolist() == [0, 0, 255]
    assert (found[1:] == 255).all()
    palette = drawing(8, 8).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    corner = palette.getpixel((0, 0))
    found = pixels(saved(palette, transparency=corner))
    assert found[0, 0].tolist() == [255, 255, 255]


def test_greys_of_one_eight_and_sixteen_bits() -> None:
    assert pixels(saved(Image.new("L", (3, 3), 77)))[0, 0].tolist() == [77, 77, 77]
    assert pixels(saved(Image.new("1", (3, 3), 1)))[0, 0].tolist() == [255, 255, 255]
    deep = Image.fromarray(np.full((3, 3), 0x8040, dtype=np.uint16))
    assert pixels(saved(deep))[0, 0].tolist() == [0x80] * 3
    assert pixels(saved(deep, "TIFF"))[0, 0].tolist() == [0x80] * 3


def test_cmyk_of_a_printer() -> None:
    found = pixels(saved(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(found[0, 0].astype(int) - [255, 0, 0]).max() < 30


def test_the_first_frame_of_a_film() -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in ((255, 0, 0), (0, 255, 0))]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert size_of(data) == (4, 6)
    assert pixels(data)[0, 0].tolist() == [255, 0, 0]


def refused(data: bytes) -> BadPicture:
    with pytest.raises(BadPicture) as caught:
        size_of(data)
    with pytest.raises(BadPicture):
        decoded(data)
    return caught.value


def test_too_many_pixels_are_refused_by_the_header() -> None:
    assert 20_000 * 20_000 > MAX_PIXELS > 12_000 * 8_000
    for data in (png_header(20_000, 20_000), png_header(11_000, 10_000), png_header(2**31 - 1, 2**31 - 1)):
        bad = refused(data)
        assert bad.problem == "the picture has more than 100,000,000 pixels"
    assert "11000×10000" in str(refused(png_header(11_000, 10_000)).found)


def test_broken_files() -> None:
    jpeg, png = bytes_of_drawing(200, 160, "JPEG"), bytes_of_drawing(200, 160, "PNG")
    assert refused(b"").problem == "the picture is an empty file"
    assert refused(b"just some words\n" * 9).problem == "the picture is none that can be read"
    for data in (jpeg[:-200], png[: len(png) // 2], png_header(500, 500)):
        assert refused(data).problem == "the picture is damaged or cut short"
    assert "picture" in refused(png_header(0, 7)).problem
    assert refused(jpeg[:400]).problem == "the picture has a broken header"
    floats = saved(Image.fromarray(np.ones((3, 3), dtype=np.float32)), "TIFF")
    assert refused(floats).problem == "the picture has real numbers for pixels"


@pytest.mark.parametrize("orientation", range(10))
def test_all_ways_to_hold_a_camera(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(drawing(60, 40), "PNG", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(pixels(data), upright) and size_of(data) == upright.shape[:2]


def test_other_readers_of_pillow_are_not_asked(tmp_path: Path) -> None:
    assert refused(saved(drawing(9, 9), "EPS")).problem == "the picture is none that can be read"
    assert refused(saved(drawing(9, 9), "PPM")).problem == "the picture is none that can be read"


SOUND = [bytes_of_drawing(24, 18, format) for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
with_exif = Image.Exif()
with_exif[0x0112] = 6
SOUND.append(bytes_of_drawing(24, 18, "JPEG", exif=with_exif))
EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.sampled_from(SOUND), edits=EDITS, length=st.integers(1, 10**6))
def test_whatever_the_bytes_are_they_are_a_picture_or_refused(
    data: bytes, edits: list[tuple[int, int]], length: int
) -> None:
    damaged = bytearray(data)
    for place, byte in edits:
        damaged[place % len(damaged)] = byte
    damaged = damaged[: length % (2 * len(damaged)) + 1]
    try:
        height, width = size_of(bytes(damaged))
    except BadPicture:
        return
    image = decoded(bytes(damaged))
    assert image.mode == "RGB" and image.size == (width, height)
