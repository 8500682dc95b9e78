"""Where the final answer of a text stands.

    "... so \\boxed{\\frac{2}{4}}"   "... #### 1,200"   "... which makes $18."   "答案是18元。"
    ->  \\frac{2}{4}                1,200             18                       18

An unmarked answer is the word that holds the last number, so that `1/5` is not taken for a 5. Chinese has no spaces: a
word ends where a character begins that belongs to no formula.
"""

from __future__ import annotations

import re

from whet.data.words import CJK
from whet.rewards.amounts import KILO, changed, is_number
from whet.rewards.reward import Unscored
from whet.rewards.rules import NUMBER, TAIL
from whet.rewards.wide import numerals

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_COMMAND = re.compile(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+")
_WORDS = re.compile(r"[^\W\d_]{2,}\s+[^\W\d_]{2,}")
# Characters of no formula. 百 千 万 亿 are part of the number before them, but 千米 and its like are units.
_FOREIGN = rf"(?:(?![百千万亿])[{CJK}]|千(?={KILO})|[\u3001-\u303f\uff00-\uff65\u2018-\u201d…—])"
_CUT = re.compile(
    rf"\s|{_FOREIGN}|:(?![0-9])|(?<![0-9]):"
    r"|(?<![0-9A-Za-z)])\*+|\*+(?![0-9A-Za-z(\\])|(?<=[A-Za-z]{2})\*\*"
)
_RUNS = re.compile(rf"(?:(?!{_FOREIGN}).)+", re.DOTALL)
_PART = re.compile(r"([0-9]+)分之([0-9]+)")
_PERCENT = re.compile(r"百分之([0-9.]+)")
_RATIO = re.compile(r"(?<=[0-9])：(?=[0-9]+(?![-0-9.+*/×÷=]))")
_SENTENCE = re.compile(rf"(?=.*[{CJK}]{{2}})(?=.*[0-9０-９]).*[，。；\n]", re.DOTALL)
_SEVERAL = re.compile("或|大于|小于|分别|至")


def final_answer(text: str) -> str | None:
    """The last box, else what follows the last #### on its line, else the word that holds the last number."""
    marked = boxed(text)
    if marked is None and "####" in text:
        marked = text.rpartition("####")[2].lstrip(" \t").partition("\n")[0]
    return (_formula(marked) or None) if marked is not None else _last_word(_read(text[-TAIL:]))


def final_reference(text: str) -> str:
    """As `final_answer`, but an unmarked reference that is no prose is an expression as a whole.

    Raises Unscored for a reference without an answer.
    """
    bare = boxed(text) is None and "####" not in text and not is_prose(text)
    answer = _formula(text) if bare else final_answer(text)
    if not answer:
        raise Unscored(f"the reference has no final answer (found {text[:80]!r})")
    return answer


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
    if _WORDS.search(_COMMAND.sub("", text)):
        return True
    return _SENTENCE.match(text) is not None and not _SEVERAL.search(text)


def _formula(text: str) -> str:
    """What is marked as the answer; of Chinese words around one formula, the formula: `共18个` is 18."""
    text = trimmed(_read(text))
    runs = [run for run in _RUNS.finditer(text) if run.group().strip(" :=")]
    if len(runs) != 1 or not NUMBER.search(runs[0].group()) or changed(text[runs[0].end() :]):
        return text
    return trimmed(runs[0].group().strip(" :=")) or text


def _last_word(text: str) -> str | None:
    """What stands without a cut around the last number."""
    last = None
    for last in NUMBER.finditer(text):  # noqa: B007
        pass
    if last is None:
        return None
    cuts = [cut.span() for cut in _CUT.finditer(text)]
    start = max((end for _, end in cuts if end <= last.start()), default=0)
    end = min((begin for begin, _ in cuts if begin >= last.end()), default=len(text))
    return trimmed(text[start:end].lstrip("=") + changed(text[end:])) or None


def _read(text: str) -> str:
    """`3分之1` is 1/3, `百分之18` is 18%, `3：4` a ratio."""
    return _RATIO.sub(":", _PERCENT.sub(r"\1%", _PART.sub(r"\2/\1", numerals(text))))
