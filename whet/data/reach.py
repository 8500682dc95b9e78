"""Paths as people wrote them, looked at: what the system says to that is one line, whatever it is.

A name of 300 letters, a folder without permission, a home that does not exist: any question about such a path raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whet.errors import DataError


@contextmanager
def reaching(name: str, field: str | None = None) -> Iterator[None]:
    """Raises DataError where the system refuses to say what there is."""
    try:
        yield
    except OSError as error:
        found = error.strerror or str(error)
        raise DataError("cannot be reached", file=name, field=field, found=found, fix="give another path") from None


def written(name: str, field: str | None = None) -> Path:
    """The path, `~` replaced. Raises DataError where nobody's home is meant."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise DataError("names no home", file=name, field=field, found=str(error), fix="write the whole path") from None


def free(path: Path) -> None:
    """Raises DataError where something stands at the path, be it a link to nothing, or nothing can be written there."""
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        found = error.strerror or str(error)
        raise DataError("cannot write", file=str(path), found=found, fix="choose another place") from None
    raise DataError("exists already, and is not overwritten", file=str(path), fix="choose another name or remove it")


def free_for_rows(path: Path) -> None:
    """The same for a file of JSON lines: one called otherwise would not be read as what it is."""
    free(path)
    if path.suffix.lower() in (".csv", ".parquet", ".txt", ".gz"):
        found = f"suffix {path.suffix!r}"
        raise DataError("what is written are JSON lines", file=str(path), found=found, fix="call it .jsonl")
