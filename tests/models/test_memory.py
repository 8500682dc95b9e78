"""Freed memory that is kept: up to the limit, and what was given back does not count."""

from __future__ import annotations

import subprocess
import sys

import pytest

from whet.models.memory import _glibc

pytestmark = pytest.mark.skipif(_glibc() is None, reason="only glibc, from 2.33 on, keeps freed memory")

PIECES = """
import gc
from whet.models.memory import FreedMemory, resident_bytes

freed = FreedMemory(limit=64 << 20)
assert freed._library is not None, "no glibc"
held = [bytearray(1 << 18) for _ in range(1024)]  # 256 MiB, too small for pages of their own
before = resident_bytes()
del held[::2]  # half of it in pieces, between others that stay
gc.collect()
freed.settle()
after, others = resident_bytes(), freed._others
assert before - after > 100 << 20, (before, after)
assert freed._library.mallinfo2().fordblks > freed._limit, "in the books what was given back stays free"

few = [bytearray(1 << 18) for _ in range(64)]  # 16 MiB of it come back, and are within the limit
del few
gc.collect()
kept = resident_bytes()
freed.settle()
assert freed._others == others and abs(resident_bytes() - kept) < 4 << 20, "given back again"
"""


def test_what_was_given_back_is_not_given_back_again() -> None:
    """In a process of its own: the switch is for good."""
    done = subprocess.run([sys.executable, "-c", PIECES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
