"""Reading a judge's score or verdict out of its words.

A score is a label (`Score` in any case, 评分, 得分, 分数), a colon (ASCII or full-width) or `=`, and a number, each
with or without Markdown emphasis and brackets of any kind around it: `**Score:** 4`, `Score：<4.5>`, `score = 4/5`.

Rules, each for a way in which judges have been misread:
- of several valid forms the last decides, because the reason comes first and may weigh other scores; for templates that
  ask for the score first, the first;
- the deciding number must lie in [low, high], otherwise the reply is unreadable (None): `Score: 10` is not 1;
- a number that goes on (`4th`, `4,5`) or opens a range (`0-5`, as in an echo of the instructions) is no valid form;
- `/N` or `out of N` must name the top of the scale: 4/10 on a scale to 5 is unreadable, not 4;
- a bare `<4>`, `4` or `four` is no score: a number is one only where the reply says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
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


_RANKING = re.compile(rf"(?<![a-z0-9])(?:ranking|排名){_DECORATION}[:：=]{_DECORATION}(?P<value>[^\n]*)", re.IGNORECASE)
_BRACKETED = re.compile(r"<\s*([0-9]+)\s*>")
_DRESS = re.compile(r"answer|response|回答|[\s*_`\"'#\[\](){}（）【】.。]", re.IGNORECASE)
_ORDER = re.compile(r"[0-9]{1,4}(?:[>=,、，][0-9]{1,4})*")


@dataclass(frozen=True, slots=True)
class FoundScore:
    """A score, and where in the reply its number begins."""

    value: float
    start: int


def find_score(text: str, low: float, high: float, *, take: Literal["last", "first"] = "last") -> FoundScore | None:
    """The score a reply gives, or None where it gives none that can be read."""
    matches = list(_SCORE.finditer(text))
    if not matches:
        return None
    match = matches[-1 if take == "last" else 0]
    value, top = float(match["value"]), match["top"]
    if not low <= value <= high or (top is not None and float(top) != high):
        return None
    return FoundScore(value, match.start("value"))


def parse_score(text: str, low: float, high: float, *, take: Literal["last", "first"] = "last") -> float | None:
    """The score alone."""
    found = find_score(text, low, high, take=take)
    return None if found is None else found.value


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


def parse_ranking(text: str, num: int) -> tuple[float, ...] | None:
    """The rank of each of `num` answers by a reply's last line `Ranking: 2 > 1 = 3`, or None.

    1 is the best; equals share the mean of their ranks. Every answer must stand in it, and none twice.

    >>> parse_ranking("Ranking: 2 > 1 = 3", 3)
    (2.5, 1.0, 2.5)
    """
    matches = list(_RANKING.finditer(text))
    tiers = _tiers(matches[-1]["value"]) if matches else []
    if sorted(place for tier in tiers for place in tier) != list(range(1, num + 1)):
        return None
    ranks = [0.0] * num
    before = 0
    for tier in tiers:
        for place in tier:
            ranks[place - 1] = before + (1 + len(tier)) / 2
        before += len(tier)
    return tuple(ranks)


def _tiers(line: str) -> list[list[int]]:
    """`2 > 1 = 3` as [[2], [1, 3]]; a comma is a `>`. Empty where anything else stands between the numbers."""
    order = _DRESS.sub("", _BRACKETED.sub(r"\1", line))
    if not _ORDER.fullmatch(order):
        return []
    return [[int(number) for number in tier.split("=")] for tier in re.split("[>,、，]", order)]
