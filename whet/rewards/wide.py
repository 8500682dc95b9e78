"""Full-width signs, as Chinese and Japanese keyboards write them, read as the ASCII signs they stand for."""

from __future__ import annotations

import re

from whet.data.words import CJK

UNSPACED = rf"{CJK}\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""Characters of scripts that put no space between words: what stands behind one of them begins anew."""

_MINUS = dict.fromkeys("\N{MINUS SIGN}\N{SMALL HYPHEN-MINUS}\N{FULLWIDTH HYPHEN-MINUS}", "-")
_BLOCK = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_ALL = str.maketrans(_BLOCK | _MINUS | {"\N{IDEOGRAPHIC SPACE}": " ", "，": "，"})
_NUMERALS = str.maketrans(
    {sign: _BLOCK[sign] for sign in "０１２３４５６７８９＋／％＝＄"} | _MINUS | {"\N{FULLWIDTH YEN SIGN}": "¥"}
)
_POINT = re.compile(r"(?<=[0-9])．(?=[0-9])")
_THOUSANDS = re.compile(r"(?<=[0-9])，(?=[0-9]{3}(?![0-9]))")
_NEGATIVE = re.compile(r"(?<![正胜])负(?=[0-9])")


def narrow(text: str) -> str:
    """Every full-width sign but the comma, one for one, so that places in the text stay what they are.

    >>> narrow("评分：４／５")
    '评分:4/5'
    """
    return text.translate(_ALL)


def numerals(text: str) -> str:
    """Only what numbers are written with: the other signs tell where a number ends.

    >>> numerals("共１，２００个，负3．5")
    '共1,200个，-3.5'
    """
    text = _POINT.sub(".", text.translate(_NUMERALS))
    return _NEGATIVE.sub("-", _THOUSANDS.sub(",", text))
