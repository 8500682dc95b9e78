"""Reading a judge's score or verdict out of its words.

A score is a label (`Score` in any case, 评分, 得分, 分数), a colon (ASCII or full-width) or `=`, and a number, each
with or without Markdown emphasis and brackets of any kind around it: `**Score:** 4`, `Score：<4.5>`, `score = 4/5`.

Rules, each for a way in which judges have been misread:
- of several valid forms the last decides, because the reason comes first and may weigh other scores; for templates that
  ask for the score first, the first;
- the deciding number must lie in [low, high], otherwise the reply is unreadable (None): `Score: 10` is not 1;
- a number that goes on (`4th`, `4,5`) or opens a range (`0-5`, as in an echo of the instructions) is no valid form;
- `/N` or `out of N` must name the top of the scale: 4/10 on a scale to 5 is unreadable, not 4.
"""

from __future__ import annotations

import re
from typing import Literal

Verdict = Literal["first", "second", "tie"]

_DECORATION = r"[\s*_`\"']*"
_OPEN, _CLOSE = r"[<\[({（【]{0,2}", r"[>\])}）】]{0,2}"
_SCORE = re.compile(
    rf"(?:(?<![a-z0-9])(?<![a-z0-9]_)score|评分|得分|分数){_DECORATION}[:：=]{_DECORATION}{_OPEN}{_DECORATION}"
    rf"(?P<value>[+-]?[0-9]+(?:\.[0-9]+)?)(?![a-z0-9_]|[.,][0-9])(?!\s*(?:[-–—~～]|to\b)\s*[0-9])"
    rf"{_DECORATION}(?:{_CLOSE}{_DECORATION}(?:/|out\s+of){_DECORATION}(?P<top>[0-9]+(?:\.[0-9]+)?))?",
    re.IGNORECASE,
)
_VERDICT = re.compile(
    rf"(?<![a-z0-9])verdict{_DECORATION}[:：=]{_DECORATION}{_OPEN}{_DECORATION}(?P<value>first|second|tie)(?![a-z0-9_])",
    re.IGNORECASE,
)


def parse_score(text: str, low: float, high: float, *, take: Literal["last", "first"] = "last") -> float | None:
    """The score a reply gives, or None where it gives none that can be read."""
    matches = list(_SCORE.finditer(text))
    if not matches:
        return None
    match = matches[-1 if take == "last" else 0]
    value, top = float(match["value"]), match["top"]
    if not low <= value <= high or (top is not None and float(top) != high):
        return None
    return value


def parse_verdict(text: str) -> Verdict | None:
    """Which of two answers a reply prefers (its last verdict counts), or None."""
    matches = list(_VERDICT.finditer(text))
    if not matches:
        return None
    match matches[-1]["value"].lower():
        case "first":
            return "first"
        case "second":
            return "second"
        case _:
            return "tie"
