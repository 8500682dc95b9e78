"""Names of tasks in tables: what `evaluate`, `watch` and the report mean by `exact-2`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def numbered(names: Sequence[str]) -> list[str]:
    """The names of one list of tasks; one that repeats gets a number.

    >>> numbered(["exact", "perplexity", "exact"])
    ['exact', 'perplexity', 'exact-2']
    """
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return found
