"""Files of a model that cannot be read, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from whet.errors import ModelError, UserError, first_line


@contextmanager
def unreadable(problem: str, *, field: str, path: str, fix: str | None = None) -> Iterator[None]:
    """What a library raises on the files at `path` is a ModelError with its first line: as the fix where none is given,
    else behind the problem. On files that are cut short or of another kind that may be anything, a bare Exception of a
    tokenizer included. A device whose memory runs out has read them well: torch.OutOfMemoryError passes."""
    try:
        yield
    except (torch.OutOfMemoryError, UserError):
        raise
    except Exception as error:
        line = first_line(error)
        whole = problem if fix is None else f"{problem} ({line})"
        raise ModelError(whole, field=field, found=repr(path), fix=fix or line) from error
