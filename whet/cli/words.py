"""Words on the command line, before anything is done with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from whet.errors import UserError


def existing_run(name: str) -> Path:
    """A run directory. Raises UserError where it is none: an unset variable in quotes leaves an empty name, which is no
    name for the current directory."""
    if not name:
        raise UserError("which run? an empty name was given", fix="name a folder that `whet run` made, e.g. runs/first")
    if not Path(name, "plan.yaml").is_file():
        raise UserError("not a run directory", file=name, fix="name a folder that `whet run` made, e.g. runs/first")
    return Path(name)


def key_of(word: str | None) -> str | None:
    """The key of `train.epochs`, and of `train.epochs=3`."""
    return None if word is None else word.partition("=")[0].strip()


def check_words(words: Sequence[str]) -> None:
    """Plans, tables and JSON hold text alone. Raises UserError for a word of other bytes."""
    for word in words:
        if not _is_text(word):
            raise UserError("not UTF-8 text on the command line", found=ascii(word), fix="rename the file")


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True
