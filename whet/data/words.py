"""Words of any script: runs of letters or digits, lower-cased; a Chinese, Japanese or Korean character is a word.

An accent or a vowel sign belongs to the letter before it, whether or not Unicode has one character for both.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af\U00020000-\U0003134f"
MARKS = range(0x300, 0x20000)
"""Where combining marks are; those behind only choose how a sign looks."""


def words(text: str) -> list[str]:
    """
    >>> words("Add 2 and_3 to 三点!")
    ['add', '2', 'and', '3', 'to', '三', '点']
    >>> words("Cafe\\u0301, हिन्दी")
    ['café', 'हिन्दी']
    """
    return _word().findall(unicodedata.normalize("NFC", text.lower()))


@cache
def _word() -> re.Pattern[str]:
    """`\\w` has no marks. Made on the first call: it takes a moment to find them all."""
    letter = rf"[^\W_{CJK}]"
    marks = "".join(sign for sign in map(chr, MARKS) if unicodedata.category(sign) in ("Mn", "Mc"))
    return re.compile(rf"[{CJK}]|{letter}+(?:[{marks}]+{letter}*)*")
