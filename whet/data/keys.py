"""What rendered rows are made from, as one hash: the same hash, the same rows and the same ledger.

It covers the bytes of every file read, the whole data section, the kinds of record asked for, the tokenizer with its
template, the libraries that apply them, and the source of this room.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.config.data import Data, Source
from whet.data.digest import file_hash
from whet.data.hub import hub_files
from whet.data.ledger import Ledger
from whet.data.locate import Place, files_of, locate
from whet.schema.records import RecordKind

if TYPE_CHECKING:
    from whet.data.render import Renderer

LIBRARIES = ("transformers", "tokenizers", "jinja2")


def rows_key(data: Data, kinds: tuple[RecordKind, ...], renderer: Renderer, folders: Mapping[str, Path]) -> str | None:
    """The hash, or None where the content of a source cannot be known before it is read.

    Raises DataError where a source does not exist, as reading it does.
    """
    sources = [_content(file, data, folders) for file in (*data.files, *data.eval_files)]
    if None in sources:
        return None
    parts = {
        "data": data.model_dump(mode="json"),
        "sources": sources,
        "kinds": kinds,
        "renderer": renderer.fingerprint,
        "libraries": {name: version(name) for name in LIBRARIES},
        "code": code_hash(),
    }
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def picture_folders(data: Data, folders: Mapping[str, Path]) -> tuple[str, ...]:
    """Where relative paths of pictures are looked for, source by source: no part of the key, since text needs none."""
    sources = (Source(path=file) if isinstance(file, str) else file for file in (*data.files, *data.eval_files))
    return tuple(folder for source in sources for folder in locate(source, data, folders).images)


@cache
def code_hash() -> str:
    """Hash of this room's modules: rows made by other code are other rows, and nobody has to remember a number."""
    digest = sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _content(file: str | Source, data: Data, folders: Mapping[str, Path]) -> dict[str, Any] | None:
    """How a source is read and the hashes of its files."""
    place = locate(Source(path=file) if isinstance(file, str) else file, data, folders)
    notes = Ledger()
    try:
        hashes = {name: file_hash(path) for name, path in _files(place, notes).items()}
    except OSError:
        return None  # reading says what is wrong
    if not hashes:
        return None
    return {"place": asdict(place) | {"path": None, "images": None}, "files": hashes, "notes": notes.notes}


def _files(place: Place, notes: Ledger) -> dict[str, Path]:
    """The files of a place by the names that the account of their rows uses."""
    if place.path is None:
        paths = hub_files(str(place.hub), subset=place.subset, split=place.split)
        return {f"{number} {path.name}": path for number, path in enumerate(paths)}
    return {name: path for path, name in files_of(place, notes)}
