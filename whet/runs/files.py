"""Writing that survives a kill: whole files appear under their name at once, lines are appended whole or repaired.

An unwritable place is the user's to mend, so every failure to write is a `RunError` that names it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from whet.errors import RunError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating-system refusal to write below `path` into a line the user can act on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise RunError(
            "cannot write", file=str(path), found=reason or str(error),
            fix="free space or permissions there, or choose another `run`",
        ) from error  # fmt: skip


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """A file to write piece by piece under a temporary name; it takes its own when the block ends well."""
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a whole file: to a temporary name beside it, flushed to disk, then renamed over `path`."""
    with replacing(path) as handle:
        handle.write(text)


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json_line(row) for row in rows))


def json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a file whet wrote; a last line cut short by a kill is left out. A missing file has no rows."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line.strip()]


@contextmanager
def appending(path: Path) -> Iterator[IO[str]]:
    """Open a JSONL file to add lines, after cutting off a last line that a kill left unfinished."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as handle:
            handle.seek(0)
            whole = handle.read().rfind(b"\n") + 1
            handle.truncate(whole)
        with path.open("a", encoding="utf-8") as handle:
            yield handle
