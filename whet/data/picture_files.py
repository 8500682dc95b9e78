"""Where a picture's bytes are: in a file, in a `data:` URL, or in the row itself, as base64 or as bytes of Parquet.

Pictures that come inside rows are unpacked once each into `$WHET_CACHE/pictures`, under the hash of their bytes: rows
then stay small wherever they go, and what a stage writes names files. Where nothing can be written there, they go along
as `data:` URLs. Nothing is ever downloaded.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from whet.data.cache import cache_folder
from whet.data.decode import BadPicture, as_seen
from whet.data.digest import signature_of
from whet.errors import DataError
from whet.schema.records import NOWHERE, Origin

MAX_BYTES = 256 * 2**20
"""Largest file of a picture."""
DATA = "data:"
WEB = ("http://", "https://", "ftp://", "s3://", "gs://", "hf://")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{32,}={0,2}\s*")
_MAGIC = {
    b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tiff",
    b"MM\0*": "tiff",
}  # fmt: skip
"""First bytes of the formats that are read, and their names in a media type."""


def bytes_of(source: str) -> bytes:
    """The bytes of a file or a `data:` URL. Raises BadPicture."""
    if source.startswith(DATA):
        return _of_url(source)
    path = Path(source)
    try:
        if not path.is_file():
            raise BadPicture(
                "the picture is no file" if path.exists() else "the picture is missing", found=source,
                fix="mend its path, or say where pictures lie by data.image_folder",
            )  # fmt: skip
        if path.stat().st_size > MAX_BYTES:
            raise BadPicture(f"the picture is larger than {MAX_BYTES >> 20} MB", found=source)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise BadPicture(
            "the picture cannot be read", found=f"{source[:80]}: {getattr(error, 'strerror', None) or error}"
        ) from None


def signature(source: str) -> tuple[int, int] | None:
    """Size of a file, and one number of all that changes when somebody edits it: other bytes, another signature.

    None for what is no file.
    """
    if source.startswith(DATA):
        return None
    try:
        found = signature_of(Path(source))
    except (OSError, ValueError):
        return None
    return found[0], hash(found)  # of numbers alone: the same in every process


def identity(source: str) -> str:
    """Hash of a picture's bytes; its name where it cannot be read, which whoever needs it will say."""
    return _identity(source, signature(source))


@lru_cache(maxsize=65_536)
def _identity(source: str, stamp: tuple[int, int] | None) -> str:
    """Read again where the file has changed."""
    try:
        return sha256(bytes_of(source)).hexdigest()
    except BadPicture:
        return source


def embedded(text: str) -> bytes | None:
    """The bytes of a text that is a picture in base64, bare; None for any other text, such as a path."""
    if not _BASE64.fullmatch(text):
        return None
    with suppress(binascii.Error):
        data = base64.b64decode("".join(text.split()), validate=True)
        if kind_of_bytes(data):
            return data
    return None


def kind_of_bytes(data: bytes) -> str | None:
    """The format by its first bytes."""
    return next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)


def unpacked(data: bytes) -> str:
    """The path of a file with these bytes, or a `data:` URL of them where none can be kept."""
    folder = pictures_folder()
    name = f"{sha256(data).hexdigest()[:40]}.{kind_of_bytes(data) or 'bin'}"
    if folder is None:
        return url_of(data)
    path = folder / name[:2] / name
    try:
        if not path.is_file() or path.stat().st_size != len(data):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{name}.{os.getpid()}")
            temporary.write_bytes(data)
            temporary.replace(path)
    except OSError:
        return url_of(data)
    return str(path)


def pictures_folder() -> Path | None:
    """Where pictures that came inside rows are unpacked; None where there is no home."""
    folder = cache_folder()
    return None if folder is None else (folder / "pictures").absolute()


def url_of(data: bytes) -> str:
    """A `data:` URL: what servers take for a picture."""
    return f"{DATA}image/{kind_of_bytes(data) or 'png'};base64,{base64.b64encode(data).decode()}"


def sent(source: str) -> str:
    """A picture as servers take it: a `data:` URL, in whose bytes they see what training sees.

    Raises DataError where it cannot be used.
    """
    try:
        return _sent(source, signature(source))
    except BadPicture as bad:
        raise complaint(bad, source, NOWHERE) from None


@lru_cache(maxsize=16)
def _sent(source: str, stamp: tuple[int, int] | None) -> str:
    """The samples of a prompt send the same pictures, one after the other."""
    return url_of(as_seen(bytes_of(source)))


def complaint(bad: BadPicture, source: str, origin: Origin) -> DataError:
    """The record's line about a picture."""
    name = "a picture in the row" if source.startswith("data:") else source
    found = name if bad.found is None or bad.found == source else f"{name} ({bad.found})"
    nowhere = origin is NOWHERE
    return DataError(
        bad.problem, file=None if nowhere else origin.file, line=None if nowhere else origin.line, field="images",
        found=found, fix=bad.fix,
    )  # fmt: skip


def _of_url(source: str) -> bytes:
    head, _, payload = source.partition(",")
    if not head.endswith(";base64"):
        raise BadPicture("the picture's data: URL is not in base64", found=head[:60])
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadPicture("the picture's data: URL is broken base64", found=str(error)) from None
