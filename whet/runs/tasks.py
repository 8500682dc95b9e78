"""Names of tasks in tables, and what they measure: what `evaluate`, `watch`, rounds and the report mean by `exact-2`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any


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


def sections(config: Mapping[str, Any]) -> dict[str, str]:
    """What each task of a stage's configuration measures, by its name in tables: its section without the name it was
    given. Tasks of two stages that share a name measure the same where these are equal."""
    tasks = config.get("tasks") or ()
    names = numbered([task.get("name") or task["type"] for task in tasks])
    return {
        name: json.dumps({key: value for key, value in task.items() if key != "name"}, sort_keys=True)
        for name, task in zip(names, tasks, strict=True)
    }
