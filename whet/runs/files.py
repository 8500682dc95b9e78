"""Writing that survives a kill: whole files appear under their name at once, lines are appended whole or repaired.

An unwritable place is the user's to mend, so every failure to write is a `RunError` that names it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar, cast

import yaml
from safetensors import SafetensorError

from whet.errors import RunError, first_line

T = TypeVar("T")


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


class WrittenText(TextIOWrapper):
    """Text on its way into a file. What goes wrong in it is a failure to write `path`; what goes wrong in the work of
    whoever writes is not."""

    def __init__(self, file: Path, mode: str, path: Path) -> None:
        self._path = path
        with writing(path):
            super().__init__(cast(BinaryIO, file.open(f"{mode}b")), encoding="utf-8")

    def write(self, text: str, /) -> int:
        with writing(self._path):
            return super().write(text)

    def flush(self) -> None:
        with writing(self._path):
            super().flush()

    def close(self) -> None:
        with writing(self._path):
            super().close()


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """A file to write piece by piece under a temporary name; it takes its own when the block ends well."""
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with WrittenText(temporary, "w", path) as handle:
            yield handle
            handle.flush()
            with writing(path):
                os.fsync(handle.fileno())
        with writing(path):
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """The same for a folder of files that libraries write."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    with writing(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            _to_disk(path)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
        _to_disk(folder.parent)


def _to_disk(path: Path) -> None:
    """Have the disk hold a file's content, or a folder's names, in case the power fails."""
    if os.name == "nt":
        return  # opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path, *, deep: bool = True) -> None:
    """Remove what a process that was killed left half written in a folder, and with `deep` anywhere below; nobody else
    may be writing there."""
    find = folder.rglob if deep else folder.glob
    with writing(folder):
        for left in sorted(find(".*.tmp*"), reverse=True):  # what is inside of another goes first
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


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


_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError)
"""What reading a file raises that is not any more what whet wrote: no kill leaves one so, but an editor or a disk may."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn `_DAMAGE` into a line the user can act on."""
    try:
        yield
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception, line: int | None = None) -> RunError:
    return RunError(
        "is damaged", file=str(path), line=line, found=first_line(error),
        fix="restore it, or begin anew with --fresh",
    )  # fmt: skip


def read_json(path: Path) -> Any:
    """Raises RunError where it is damaged."""
    with reading(path):
        return json.loads(path.read_text(encoding="utf-8"))


def read_yaml(path: Path) -> dict[str, Any]:
    """The same for a file of keys and values."""
    with reading(path):
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError(f"no keys and values but {type(found).__name__}")
    return found


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a file whet wrote; a last line cut short by a kill is left out. A missing file has no rows. Raises
    RunError where it is damaged."""
    if not path.exists():
        return []
    rows, number = list[dict[str, Any]](), 0
    try:
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            if line.strip():
                rows.append(json.loads(line))
    except ValueError as error:
        raise _damaged(path, error, number) from error
    return rows


def typed(kind: type[T], row: Any, path: Path, line: int | None = None) -> T:
    """A dataclass of what stands in a file. Raises RunError where the keys are not its own."""
    if not isinstance(row, Mapping):
        raise _damaged(path, TypeError(f"no keys and values but {type(row).__name__}"), line)
    known = fields(cast(Any, kind))
    needed = [each.name for each in known if each.default is MISSING and each.default_factory is MISSING]
    if lacking := [name for name in needed if name not in row]:
        raise _damaged(path, ValueError(f"without {', '.join(lacking)}"), line)
    if unknown := sorted(row.keys() - {each.name for each in known}):
        raise RunError(
            "has keys that this version of whet does not know", file=str(path), line=line, found=", ".join(unknown),
            fix="a newer one may have written it: use that, or begin anew with --fresh",
        )  # fmt: skip
    return kind(**row)


def typed_all(kind: type[T], rows: Any, path: Path) -> tuple[T, ...]:
    """The same for the rows of a file, or of a list in it."""
    if not isinstance(rows, list | tuple):
        raise _damaged(path, TypeError(f"no list but {type(rows).__name__}"))
    line = path.suffix == ".jsonl"
    return tuple(typed(kind, row, path, number if line else None) for number, row in enumerate(rows, start=1))


@contextmanager
def appending(path: Path) -> Iterator[IO[str]]:
    """Open a JSONL file to add lines, after cutting off a last line that a kill left unfinished."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
    with WrittenText(path, "a", path) as handle:
        yield handle
