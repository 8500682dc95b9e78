"""Names of tasks in tables: what `evaluate`, `watch` and the report mean by `exact-2`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count


def numbered(names: Sequence[str]) -> list[str]:
    """The names of one list of tasks; one that repeats gets a number that makes a name of nobody's.

    >>> numbered(["exact", "perplexity", "exact"])
    ['exact', 'perplexity', 'exact-2']
    >>> numbered(["exact", "exact-2", "exact"])
    ['exact', 'exact-2', 'exact-3']
    """
    found: list[str] = []
    for name in names:
        others = (f"{name}-{number}" for number in count(2))
        found.append(name if name not in found else next(new for new in others if new not in names and new not in found))
    return found
