"""Final answers compared as mathematics: numbers here, everything else by math-verify in a worker process.

    "... so \\boxed{\\frac{2}{4}}"   "... #### 1,200"   "... which makes $18."      ->  \\frac{2}{4}   1,200   18

An unmarked answer is the word that holds the last number, so that `1/5` is not taken for a 5.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from decimal import Decimal

from whet.config.rules import Math
from whet.errors import ConfigError
from whet.rewards.answer import answer_in, as_answer
from whet.rewards.process import Call, Worker
from whet.rewards.reward import Unscored, no_answer, reference_of
from whet.rewards.rules import NUMBER, TAIL, decimal
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion, Score

LONGEST = 1000
"""Characters of the longest final answer; more is none."""

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_NUMBER_ALONE = re.compile(rf"\+?(?:{NUMBER.pattern})")
_SCALE = "hundred|thousand|million|billion|trillion|dozen"
_WITH_UNIT = re.compile(rf"({_NUMBER_ALONE.pattern})\s*[-/]?\s*(?!{_SCALE})[A-Za-z]{{2,}}[A-Za-z ./]*")
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_COMMAND = re.compile(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+")
_WORDS = re.compile(r"[^\W\d_]{2,}\s+[^\W\d_]{2,}")


class MathReward:
    """1.0 where the final answer of a completion is that of the reference, else 0.0."""

    some_gold = False

    def __init__(self, config: Math) -> None:
        """Raises ConfigError where math-verify is not installed."""
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError(
                "needs the package math-verify", field="reward.type", found="math",
                fix='install it by `pip install "whet[math]"`, or take type=numeric',
            )  # fmt: skip
        self.config = config
        self._worker = Worker("whet.rewards.equal:equal", timeout=config.timeout, what="the comparison")

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        scores: list[Score | None] = []
        unclear: list[Call] = []
        for prompt, completion in zip(prompts, completions, strict=True):
            said = self._plainly(prompt, completion)
            scores.append(said if isinstance(said, Score) else None)
            if not isinstance(said, Score):
                unclear.append(Call(args=said))
        rest = iter(self._worker.call(unclear))
        return [next(rest) if score is None else score for score in scores]

    def gold(self, prompt: Prompt) -> str | None:
        """The reference as a completion; a bare expression goes into a box."""
        reference = prompt.reference
        if reference is None:
            return None
        bare = boxed(reference) is None and "####" not in reference and not _is_prose(reference)
        return as_answer(f"\\boxed{{{reference}}}" if bare else reference, self.config)

    def _plainly(self, prompt: Prompt, completion: Completion) -> Score | tuple[str, str]:
        """The score, or the two expressions that have to be compared."""
        if failed := no_answer(completion):
            return failed
        try:
            expected = final_reference(reference_of(prompt))
        except Unscored as reason:
            return Score(value=None, error=str(reason))
        text = answer_in(completion.text, self.config)
        answer = None if text is None else final_answer(text)
        if answer is None or len(answer) > LONGEST:
            return Score(value=0.0)
        same = alike(expected, answer)
        return (expected, answer) if same is None else Score(value=float(same))


def final_answer(text: str) -> str | None:
    """The last box, else what follows the last #### on its line, else the word that holds the last number."""
    marked = boxed(text)
    if marked is None and "####" in text:
        marked = text.rpartition("####")[2].lstrip(" \t").partition("\n")[0]
    return (trimmed(marked) or None) if marked is not None else _last_word(text[-TAIL:])


def final_reference(text: str) -> str:
    """As `final_answer`, but an unmarked reference that is no prose is an expression as a whole.

    Raises Unscored for a reference without an answer.
    """
    bare = boxed(text) is None and "####" not in text and not _is_prose(text)
    answer = trimmed(text) if bare else final_answer(text)
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


def alike(expected: str, answer: str) -> bool | None:
    """Whether two answers are the same where that is plain: equal texts, or two numbers; None where it is not.

    The answer's number may have a unit: `72 clips`, `$18/hour`; one letter is a variable, and `5 million` no 5.
    """
    if expected == answer:
        return True
    unit = _WITH_UNIT.fullmatch(answer.replace("$", ""))
    left, right = _number(expected), _number(unit[1] if unit else answer)
    return None if left is None or right is None else left == right


def _number(text: str) -> Decimal | None:
    text = text.removeprefix("+").replace("$", "")
    return decimal(text) if _NUMBER_ALONE.fullmatch(text) else None


def _is_bracketed_number(text: str) -> bool:
    return text.startswith("(") and text.endswith(")") and _number(text[1:-1]) is not None


def _is_prose(text: str) -> bool:
    """Whether words stand side by side, LaTeX commands aside."""
    return _WORDS.search(_COMMAND.sub("", text)) is not None


def _last_word(text: str) -> str | None:
    """The run of characters without space around the last number."""
    last = None
    for last in NUMBER.finditer(text):  # noqa: B007
        pass
    if last is None:
        return None
    start, end = last.span()
    while start > 0 and not text[start - 1].isspace():
        start -= 1
    while end < len(text) and not text[end].isspace():
        end += 1
    return trimmed(text[start:end]) or None
