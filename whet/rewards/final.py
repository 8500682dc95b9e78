"""Where the final answer of a text stands.

    "... so \\boxed{\\frac{2}{4}}"   "... #### 1,200"   "... which makes $18."   "答案是18元。"
    ->  \\frac{2}{4}                1,200             18                       18

An unmarked answer is the word that holds the last number, so that `1/5` is not taken for a 5. Chinese has no spaces: a
word ends where a character begins that belongs to no formula.
"""

from __future__ import annotations

import re

from whet.data.words import CJK
from whet.rewards.amounts import KILO, changed, changing, is_number
from whet.rewards.reward import Unscored
from whet.rewards.rules import NUMBER, TAIL
from whet.rewards.wide import numerals

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_COMMAND = re.compile(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+")
# Possessive (`++`) and behind no other of its kind: a long run is read once, not once from each of its characters.
_SIDE_BY_SIDE = re.compile(r"(?<![^\W\d_])[^\W\d_]{2,}+\s++[^\W\d_]{2}")
# Characters of no formula. 百 千 万 亿 are part of the number before them, but 千米 and its like are units.
_FOREIGN = rf"(?:(?![百千万亿])[{CJK}]|千(?={KILO})|[\u3001-\u303f\uff00-\uff65\u2018-\u201d…—])"
# One asterisk is Markdown where a side of it has no operand, two are where none would take a power.
_CUT = re.compile(
    rf"\s|{_FOREIGN}|:(?![0-9])|(?<![0-9]):"
    r"|(?<![0-9A-Za-z)}\]|!%²³*])\*(?!\*)|(?<!\*)\*(?![0-9A-Za-z(\\|√\[{$*+-]|\.[0-9])"
    r"|(?<![0-9A-Za-z)}\]*])\*{2,}+|(?<!\*)\*{2,}+(?![+-]?\.?[0-9A-Za-z(\\])|(?<=[A-Za-z]{2})\*\*"
)
_RUNS = re.compile(rf"(?:(?!{_FOREIGN}).)+", re.DOTALL)
_PART = re.compile(r"(?<![0-9])([0-9]++)分之([0-9]+)")
_PERCENT = re.compile(r"百分之([0-9.]+)")
_RATIO = re.compile(r"(?<=[0-9])：(?=[0-9]++(?![-.+*/×÷=]))")
_SENTENCE = re.compile(rf"(?=.*[{CJK}]{{2}})(?=.*[0-9０-９]).*[，。；\n]", re.DOTALL)
_SEVERAL = re.compile("或|大于|小于|分别|至")
# `2024年5月1日`, `3小时5分`, `1又1/2`, `3和5` are one answer each: what stands before the last number, and behind it.
_JOINED = re.compile(r"(?<![0-9.,])(?:[0-9]+(?:\.[0-9]+)?(?:年|月|日|小?时|点|分钟?|元|块|角|米|[又和或与、])\s?)+$")
_ENDS = re.compile(rf"年|月|日|号|小?时|点|分钟?|秒|元|角|厘?米|(?![{CJK}])")
_COMPOUND = 40
"""Characters of the longest beginning of such an answer."""
LONGEST = 1000
"""Characters of the longest final answer; more is none."""


def final_answer(text: str) -> str | None:
    """The last box, else what follows the last #### on its line, else the word that holds the last number."""
    marked = _marked(text)
    if marked is None:
        return _last_word(text[-TAIL:])
    return (_formula(marked) or None) if len(marked) <= 2 * LONGEST else None


def final_reference(text: str) -> str:
    """As `final_answer`, but an unmarked reference that is no prose is an expression as a whole.

    Raises Unscored for a reference without an answer.
    """
    marked = _marked(text)
    prose = marked is None and is_prose(text)
    answer = _last_word(text[-TAIL:]) if prose else _formula(text if marked is None else marked)
    if not answer:
        raise Unscored(f"the reference has no final answer (found {text[:80]!r})")
    return answer


def whole(text: str) -> str:
    """A text as an answer that nothing is cut from: of two that are equal no part has to be found."""
    return trimmed(_read(text).strip().rstrip("。！？；，"))


def _marked(text: str) -> str | None:
    marked = boxed(text)
    if marked is None and "####" in text:
        marked = text.rpartition("####")[2].lstrip(" \t").partition("\n")[0]
    return marked


def boxed(text: str) -> str | None:
    """What stands in the last \\boxed{...} that is closed; of boxes in each other, the inner one."""
    opened: list[tuple[int, bool]] = []
    start, best = -1, None
    for match in _BRACES.finditer(text):
        piece = match.group()
        if piece.endswith("{") and piece != "\\{":
            opened.append((match.end(), piece != "{"))
        elif piece == "}" and opened:
            begin, is_box = opened.pop()
            if is_box and begin > start:
                start, best = begin, text[begin : match.start()]
    return best


def trimmed(answer: str) -> str:
    """An answer without what surrounds it in a text: quotes, Markdown, math delimiters, a last stop.

    GSM8K's calculations, as in `<<48+24=72>>72`, are left out.
    """
    answer = _CALCULATOR.sub("", answer).replace("\\$", "$").strip()
    for opening, closing in (("\\(", "\\)"), ("\\[", "\\]")):
        answer = answer.removeprefix(opening).removesuffix(closing)
    stripped = answer.strip().strip("*`\"'").rstrip(".,;:!?").strip("*`$\"'").rstrip(".,;:!?").strip()
    return stripped.removeprefix("(").removesuffix(")") if _is_bracketed_number(stripped) else stripped


def _is_bracketed_number(text: str) -> bool:
    return text.startswith("(") and text.endswith(")") and is_number(text[1:-1])


def is_prose(text: str) -> bool:
    """Whether words stand side by side, LaTeX commands aside, or Chinese ones in sentences that tell one answer."""
    if _SIDE_BY_SIDE.search(_COMMAND.sub("", text)):
        return True
    return _SENTENCE.match(text) is not None and not _SEVERAL.search(text)


def _formula(text: str) -> str:
    """What is marked as the answer; of Chinese words around one formula, the formula: `共18个` is 18."""
    text = whole(text)
    runs = [run for run in _RUNS.finditer(text) if run.group().strip(" :=")]
    if len(runs) != 1 or not NUMBER.search(runs[0].group()) or changed(text[runs[0].end() :]):
        return text
    if changing(text[: runs[0].start()]):
        return text
    return trimmed(runs[0].group().strip(" :=")) or text


def _last_word(text: str) -> str | None:
    """What stands without a cut around the last number."""
    text = _read(_CALCULATOR.sub("", text))
    numbers = list(NUMBER.finditer(text))
    if not numbers:
        return None
    last = numbers[-1]
    cuts = [cut.span() for cut in _CUT.finditer(text)]
    start = max((end for _, end in cuts if end <= last.start()), default=0)
    end = min((begin for begin, _ in cuts if begin >= last.end()), default=len(text))
    before, behind = _JOINED.search(text[max(0, start - _COMPOUND) : start]), _ENDS.match(text, end)
    if before and behind:
        return trimmed(before.group() + text[start:end] + behind.group())
    return trimmed(changing(text[:start]) + text[start:end].lstrip("=") + changed(text[end:])) or None


def _read(text: str) -> str:
    """`3分之1` is 1/3, `百分之18` is 18%, `3：4` a ratio."""
    return _RATIO.sub(":", _PERCENT.sub(r"\1%", _PART.sub(r"\2/\1", numerals(text))))
