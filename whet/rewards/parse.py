"""Reading a judge's score or verdict out of its words.

A score is a label (`Score` in any case, 评分, 得分, 分数, 总分), a colon or `=`, and a number, each with or without
Markdown emphasis and brackets of any kind around it: `**Score:** 4`, `Score：<4.5>`, `score = 4/5`. Signs and digits
may be full-width.

Rules, each for a way in which judges have been misread:
- of several valid forms the last decides, because the reason comes first and may weigh other scores; for templates that
  ask for the score first, the first;
- the deciding number must lie in [low, high], otherwise the reply is unreadable (None): `Score: 10` is not 1;
- a number that goes on (`4th`, `4,5`) or opens a range (`0-5`, as in an echo of the instructions) is no valid form;
- `/N` or `out of N` must name the top of the scale: 4/10 on a scale to 5 is unreadable, not 4;
- a bare `<4>`, `4` or `four` is no score: a number is one only where the reply says so;
- what is thought (up to the last `</think>`) says nothing, and a reply that begins with a thought without an end is
  unreadable; a `<think>` in its midst is a word;
- in a reply that was cut (`cut`), a score, verdict or ranking at its very end may go on: it is unreadable;
- `first or second` is no verdict (`first, or so` is one), nor are all three in a row: they echo the instructions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from whet.rewards.wide import narrow

Verdict = Literal["first", "second", "tie"]

# Possessive (`*+`): what decorates is taken once and never given back, so that endless space costs no endless time.
_DECORATION = r"[\s*_`\"']*+"
_OPEN, _CLOSE = r"[<\[({【]{0,2}", r"[>\])}】]{0,2}"
_SCORE = re.compile(
    rf"(?:(?<![a-z0-9])(?<![a-z0-9]_)score|评分|得分|分数|(?<!\()总分){_DECORATION}[:=]{_DECORATION}{_OPEN}{_DECORATION}"
    rf"(?P<value>[+-]?[0-9]+(?:\.[0-9]+)?)(?![a-z0-9_]|[.,][0-9])(?![ \t]*(?:[-–—~]|to\b)[ \t]*[0-9])"
    rf"{_DECORATION}(?:{_CLOSE}{_DECORATION}(?:/|out\s++of){_DECORATION}(?P<top>[0-9]+(?:\.[0-9]+)?))?",
    re.IGNORECASE,
)
_VERDICT = re.compile(
    rf"(?<![a-z0-9])verdict{_DECORATION}[:=]{_DECORATION}{_OPEN}{_DECORATION}(?P<value>first|second|tie)(?![a-z0-9_])"
    rf"(?![ \t*_`\"']*+{_CLOSE}[ \t*_`\"']*+[,，、]?[ \t]*+(?:or\b(?:\s+the\b)?|或|[/|])"
    rf"{_DECORATION}{_OPEN}{_DECORATION}(?:first|second|tie)(?![a-z0-9_]))",
    re.IGNORECASE,
)
_RANKING = re.compile(rf"(?<![a-z0-9])(?:ranking|排名){_DECORATION}[:=]{_DECORATION}(?P<value>[^\n]*)", re.IGNORECASE)
_THINKS = re.compile(r"\s*<think>")
_WORD = re.compile(r"[^\W_]")
_MAY_GO_ON = re.compile(r"[.,/|~–—-]?")
_BRACKETED = re.compile(r"<\s*([0-9]+)\s*>")
_DRESS = re.compile(r"answer|response|回答|[\s*_`\"'#\[\](){}（）【】.。]", re.IGNORECASE)
_ORDER = re.compile(r"[0-9]{1,4}(?:[>=,、，][0-9]{1,4})*")


@dataclass(frozen=True, slots=True)
class FoundScore:
    """A score, and where in the reply its number begins."""

    value: float
    start: int


def find_score(
    text: str, low: float, high: float, *, take: Literal["last", "first"] = "last", cut: bool = False
) -> FoundScore | None:
    """The score a reply gives, or None where it gives none that can be read."""
    begin = _answer_at(text)
    said = narrow(text[begin:])
    matches = list(_SCORE.finditer(said))
    if not matches:
        return None
    match = matches[-1 if take == "last" else 0]
    value, top = float(match["value"]), match["top"]
    if not low <= value <= high or (top is not None and float(top) != high):
        return None
    if cut and _MAY_GO_ON.fullmatch(said, match.end("value" if top is None else "top")):
        return None
    return FoundScore(value, begin + match.start("value"))


def parse_score(
    text: str, low: float, high: float, *, take: Literal["last", "first"] = "last", cut: bool = False
) -> float | None:
    """The score alone."""
    found = find_score(text, low, high, take=take, cut=cut)
    return None if found is None else found.value


def parse_verdict(text: str, *, cut: bool = False) -> Verdict | None:
    """Which of two answers a reply prefers (its last verdict counts), or None."""
    said = narrow(text[_answer_at(text) :])
    matches = _without_echoes(said, list(_VERDICT.finditer(said)))
    if not matches or (cut and _MAY_GO_ON.fullmatch(said, matches[-1].end("value"))):
        return None
    return _verdict(matches[-1])


def parse_ranking(text: str, num: int, *, cut: bool = False) -> tuple[float, ...] | None:
    """The rank of each of `num` answers by a reply's last line `Ranking: 2 > 1 = 3`, or None.

    1 is the best; equals share the mean of their ranks. Every answer must stand in it, and none twice.

    >>> parse_ranking("Ranking: 2 > 1 = 3", 3)
    (2.5, 1.0, 2.5)
    """
    said = narrow(text[_answer_at(text) :])
    matches = list(_RANKING.finditer(said))
    if not matches or (cut and matches[-1].end() == len(said)):
        return None
    tiers = _tiers(matches[-1]["value"])
    if sorted(place for tier in tiers for place in tier) != list(range(1, num + 1)):
        return None
    ranks = [0.0] * num
    before = 0
    for tier in tiers:
        for place in tier:
            ranks[place - 1] = before + (1 + len(tier)) / 2
        before += len(tier)
    return tuple(ranks)


def _answer_at(text: str) -> int:
    """Where the reply has ended thinking: the end of the text where it has not."""
    begin = text.rfind("</think>")
    begin = 0 if begin < 0 else begin + len("</think>")
    return len(text) if _THINKS.match(text, begin) else begin


def _verdict(match: re.Match[str]) -> Verdict:
    match match["value"].lower():
        case "first":
            return "first"
        case "second":
            return "second"
        case _:
            return "tie"


def _without_echoes(text: str, matches: list[re.Match[str]]) -> list[re.Match[str]]:
    """The verdicts that are not one of all three in a row, line by line, as the instructions name them."""
    kept: list[re.Match[str]] = []
    for match in matches:
        kept.append(match)
        last = kept[-3:]
        between = [text[a.end() : b.start()] for a, b in pairwise(last)]
        if [_verdict(one) for one in last] == ["first", "second", "tie"] and not any(map(_WORD.search, between)):
            del kept[-3:]
    return kept


def _tiers(line: str) -> list[list[int]]:
    """`2 > 1 = 3` as [[2], [1, 3]]; a comma is a `>`. Empty where anything else stands between the numbers."""
    order = _DRESS.sub("", _BRACKETED.sub(r"\1", line))
    if not _ORDER.fullmatch(order):
        return []
    return [[int(number) for number in tier.split("=")] for tier in re.split("[>,、，]", order)]
