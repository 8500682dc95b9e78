"""What may come back as a reward from outside: a number, or a mapping of parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LONGEST_ERROR = 500
"""Characters of an error that are kept."""


def read_value(value: object) -> dict[str, Any]:
    """The reply for what a function returned: its value, with the parts where it gave a mapping, or an error.

    The value of a mapping is its entry `score`, else the sum of all.
    """
    numbers = {str(name): _number(part) for name, part in value.items()} if isinstance(value, Mapping) else {}
    total = numbers.pop("score", sum(numbers.values())) if numbers else _number(value)
    if not all(map(math.isfinite, (total, *numbers.values()))):
        return {"error": f"must return a number (found {value!r})"[:LONGEST_ERROR]}
    return {"value": total, "parts": numbers}


def _number(value: object) -> float:
    """The value as a number, nan where it is none."""
    try:
        return math.nan if isinstance(value, str | bytes) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan
