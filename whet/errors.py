"""What goes wrong because of the user's input, said in one line a person can act on.

The command line turns a `UserError` into `error: <text>` on stderr and exit code 2, without a traceback. Anything
else is a defect of whet and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Input that cannot be used: says where, what was found, and what to do.

    >>> str(UserError("not a number", file="plan.yaml", line=7, field="train.epochs", found="'two'", fix="write 2"))
    "plan.yaml:7: train.epochs: not a number (found 'two'); write 2"
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | None = None,
        line: int | None = None,
        field: str | None = None,
        found: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.problem, self.file, self.line, self.field, self.found, self.fix = problem, file, line, field, found, fix
        place = f"{file}:{line}" if file and line else file
        text = ": ".join(piece for piece in (place, field, problem) if piece)
        if found is not None:
            text += f" (found {found})"
        if fix:
            text += f"; {fix}"
        super().__init__(printable(text))


class ConfigError(UserError):
    """A plan that cannot be run."""


class DataError(UserError):
    """A file or row that cannot be read as records."""


class ModelError(UserError):
    """A checkpoint that cannot be loaded or written."""


class RunError(UserError):
    """A run directory that cannot be used as asked."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name a person most likely meant, or None where nothing is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def printable(text: str) -> str:
    """The text with what no terminal could write, halves of characters and bytes of a file's name, spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def whole(text: str) -> str:
    """The text as a file can hold it: halves of a character that stand together are one, another becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def first_line(error: Exception) -> str:
    """What a library's error says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
