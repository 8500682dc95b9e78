"""Rules that compare an answer with the reference: as text, or by the last number."""

from __future__ import annotations

import re
from decimal import Decimal

from whet.config.rules import Answer, Contains, Exact, Numeric
from whet.data.words import CJK
from whet.rewards.answer import answer_in, as_answer
from whet.rewards.reward import Gold, RuleReward, Unscored, reference_of
from whet.rewards.wide import UNSPACED, numerals
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion

# A sign belongs to the number unless it stands after a digit, letter or bracket: "7-3" ends in 3, "x = -3" in -3. A
# Chinese character ends the word before it (答案是-3), but 3元-5元 is a range: one or two characters that are no
# verb, behind a digit.
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_BEGINS = rf"(?<![^\W{UNSPACED}])"
_IN_UNIT = rf"(?![是为得到至和与或即取于加减乘除以在从由选])[{CJK}]"
_NO_RANGE = rf"(?<![0-9A-Za-z]{_IN_UNIT})(?<![0-9][{CJK}]{_IN_UNIT})"
NUMBER = re.compile(
    rf"(?:{_BEGINS}(?<![)\]）］]){_NO_RANGE}-[$€£¥]?)?(?:{_WHOLE}(?:\.[0-9]+)?|{_BEGINS}(?<!\.)\.[0-9]+)"
)
"""In a text whose full-width signs are read (see `numerals`)."""
TAIL = 10_000
"""Characters at the end of a text in which its last number is looked for: endless digits cost no endless time."""


def exact(config: Exact) -> RuleReward:
    def rule(prompt: Prompt, completion: Completion) -> float:
        reference, answer = reference_of(prompt), answer_in(completion.text, config)
        return float(answer is not None and answer.strip() == reference.strip())

    return RuleReward(rule=rule, gold=reference_as_answer(config))


def contains(config: Contains) -> RuleReward:
    def rule(prompt: Prompt, completion: Completion) -> float:
        reference, answer = reference_of(prompt), answer_in(completion.text, config)
        return float(answer is not None and reference.strip() in answer)

    return RuleReward(rule=rule, gold=reference_as_answer(config))


def numeric(config: Numeric) -> RuleReward:
    def rule(prompt: Prompt, completion: Completion) -> float:
        expected, answer = last_number(reference_of(prompt)), answer_in(completion.text, config)
        if expected is None:
            raise Unscored(f"the reference has no number (found {prompt.reference!r})")
        return float(answer is not None and last_number(answer) == expected)

    return RuleReward(rule=rule, gold=reference_as_answer(config))


def reference_as_answer(where: Answer) -> Gold:
    """The reference, put where the rule looks for the answer."""

    def gold(prompt: Prompt) -> str | None:
        return None if prompt.reference is None else as_answer(prompt.reference, where)

    return gold


def last_number(text: str) -> Decimal | None:
    """The last number in a text: thousands separators removed, `3.50` equal to `3.5`, a leading minus kept."""
    found = NUMBER.findall(numerals(text[-TAIL:]))
    return decimal(found[-1]) if found else None


def decimal(number: str) -> Decimal:
    """The value of a text that `NUMBER` matches."""
    return Decimal(re.sub(r"[,$€£¥]", "", number))
