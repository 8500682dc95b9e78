"""Words of any script: runs of letters or digits, lower-cased; a Chinese, Japanese or Korean character is a word."""

from __future__ import annotations

import re

CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af\U00020000-\U0003134f"
WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")


def words(text: str) -> list[str]:
    """
    >>> words("Add 2 and_3 to 三点!")
    ['add', '2', 'and', '3', 'to', '三', '点']
    """
    return WORD.findall(text.lower())
