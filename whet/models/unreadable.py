"""Files of a model that cannot be read, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

from whet.errors import ModelError

_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)
"""What the libraries raise on files that are cut short, of another shape, or of another kind."""


@contextmanager
def unreadable(problem: str, *, field: str, path: str, fix: str | None = None) -> Iterator[None]:
    """What a library raises on the files at `path` is a ModelError with its first line: as the fix where none is given,
    else behind the problem. A device whose memory runs out has read them well: torch.OutOfMemoryError passes."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _ERRORS as error:
        line = first_line(error)
        whole = problem if fix is None else f"{problem} ({line})"
        raise ModelError(whole, field=field, found=repr(path), fix=fix or line) from error


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
