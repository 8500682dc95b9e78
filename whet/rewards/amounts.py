"""Numbers as people write them: with a currency, a scale and a unit.

    $1,200   18元   72 clips   18 dollars a day   5 million   5万    ->   1200   18   72   18   5000000   50000

`about 18` and its like are 18. One letter is a variable, and words that change a number are no unit: `3 cubed`, `2 pi`,
`5 and a half`, `3的平方`.
"""

from __future__ import annotations

import re
from decimal import Decimal

from whet.data.words import CJK
from whet.rewards.rules import NUMBER, decimal
from whet.rewards.wide import numerals

KILO = "[米克瓦卡帕焦伏赫]"
_SCALES = {
    "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "百": 2, "千": 3, "万": 4, "亿": 8
}  # fmt: skip
_WORDS = "hundred|thousand|million|billion|trillion"
_SCALE = rf"(?:{_WORDS})s?(?![A-Za-z])|百(?!分)|千(?!{KILO})|[万亿]"
_POWER = "(?:平方|立方)(?![千公厘分毫微英]?[米里尺寸])|次方"
_CURRENCY = re.compile(r"^([+-]?)\s*(?:(?:US|HK)?[$€£¥]|USD|EUR|GBP|CNY|RMB|人民币)\s*|(?<!\s)\s*+[$€£¥]$")
_ABOUT = re.compile(r"^(?:(?:about|approximately)(?![A-Za-z])|大?约|≈|~|\\approx(?![A-Za-z]))\s*", re.IGNORECASE)
_TEXT = re.compile(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}")
_UNIT = rf"[A-Za-z]{{2}}[A-Za-z ./]*+|[{CJK}][{CJK}A-Za-z /]{{0,11}}|°[CF]?|℃"
_NUMBER = re.compile(rf"\+?(?:{NUMBER.pattern})")
_AMOUNT = re.compile(
    rf"(?P<number>{_NUMBER.pattern})\s*+(?P<scale>(?:(?:{_SCALE})\s*+)*)(?:[-/]?\s*+(?P<unit>{_UNIT}))?", re.IGNORECASE
)
_NO_UNIT = re.compile(
    rf"(?<![A-Za-z])(?:(?:{_WORDS}|dozen)s?|pi|sqrt|root|squared|cubed|half|halves|log|ln|exp"
    r"|(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth)s|(?:arc)?(?:sin|cos|tan|cot|csc)h?"
    r"|mod|plus|minus|and|or|over|divided|factorial|times(?=\s+(?!a\b)[a-z](?![a-z])))(?![A-Za-z])"
    rf"|{_SCALE}|^[成打折]|[半的和或与加减乘除]|分之|根号|{_POWER}",
    re.IGNORECASE,
)
_CHANGED = re.compile(
    rf"\s+(?:(?:{_WORDS}|dozen|squared|cubed|pi)(?![A-Za-z])|[万亿])|\s+and\s+(?:a|one)\s+[a-z]+"
    rf"|\s*+的?\s*+(?:{_POWER})|[个年天小时点米斤里元块]{{0,2}}半(?![径圆球])|[打成折](?![\u4e00-\u9fff])|根号",
    re.IGNORECASE,
)
_CHANGING = re.compile(r"(?:根号|负数|正负)\s?$")
_PLAIN_WORDS = re.compile(rf"(?:[A-Za-z]{{3,}}+|[{CJK}]|[\s.,:;!?'\"$€£¥~≈：，。；！？])*+")


def alike(expected: str, answer: str) -> bool | None:
    """Whether two answers are the same where that is plain: equal texts, or two amounts; None where it is not.

    Units and currencies are left out on both sides.
    """
    if expected == answer:
        return True
    left, right = amount(expected), amount(answer)
    return None if left is None or right is None else left == right


def amount(text: str) -> Decimal | None:
    """The number of a text that is a number with what may stand around it; None for any other."""
    text = _ABOUT.sub("", _TEXT.sub(r"\1", numerals(text)).strip())
    found = _AMOUNT.fullmatch(_CURRENCY.sub(r"\1", text))
    if found is None or _NO_UNIT.search(found["unit"] or ""):
        return None
    scales = re.findall(_SCALE, found["scale"], re.IGNORECASE)
    number = decimal(found["number"])
    return number.scaleb(sum(_SCALES[scale.lower().removesuffix("s")] for scale in scales)) if scales else number


def is_number(text: str) -> bool:
    """Whether a text is a number without a unit."""
    return _NUMBER.fullmatch(_CURRENCY.sub(r"\1", text)) is not None


def changed(after: str) -> str:
    """What begins the text behind a number and changes it: ` million`, `的平方`; empty where nothing does."""
    found = _CHANGED.match(after)
    return found.group() if found else ""


def changing(before: str) -> str:
    """What ends the text before a number and changes it: `根号`; empty where nothing does."""
    found = _CHANGING.search(before[-4:])
    return found.group() if found else ""


def lone_number(text: str) -> str | None:
    """The number that a text of plain words begins with, as in `18 dollars, altogether`; None for any other.

    One behind other words may be no answer without them: `May 1`, `Option 3`, `negative 3`.
    """
    text = _CURRENCY.sub(r"\1", _ABOUT.sub("", numerals(text).strip()))
    found = NUMBER.match(text)
    after = text[found.end() :] if found else ""
    return found.group() if found and _PLAIN_WORDS.fullmatch(after) and not _NO_UNIT.search(after.strip()) else None
