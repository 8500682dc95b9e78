"""Standard output: for people, for programs, and where it cannot be written."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from whet.errors import UserError

ESCAPES = "whet.json"


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """What an encoding cannot write, as JSON spells it: `\\u4f60`, two of them beyond 16 bits."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)), error.end


codecs.register_error(ESCAPES, _escaped)


def for_people() -> None:
    """Standard output as a person reads it: a terminal without Chinese shows ? for it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def for_json() -> None:
    """Standard output as programs read it, from here on: no character becomes another one. JSON is UTF-8 by its
    standard, so that another encoding gets escapes for everything beyond ASCII."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        sys.stdout.reconfigure(encoding="utf-8" if utf8 else "ascii", errors=ESCAPES)


def print_json(value: object) -> None:
    for_json()
    print(json.dumps(value, ensure_ascii=False, indent=2))


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk says; of a file it is opened by its name, of standard output without one."""


@contextmanager
def written() -> Iterator[None]:
    """Around a command: what it prints is written when it ends. Raises UserError where it cannot be, as on a full disk
    behind `>`."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:  # printing says so at once where Python does not buffer
            _let_go()
            raise _unwritten(error) from error
        raise
    if sys.stdout is None:  # closed by who called: `>&-`
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # who reads it has seen enough (`| head`)
        _let_go()
    except OSError as error:
        _let_go()
        raise _unwritten(error) from error


def _unwritten(error: OSError) -> UserError:
    return UserError("cannot write the output", found=error.strerror, fix="free space where it goes")


def _let_go() -> None:
    """What is left goes nowhere, or Python would try again as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
