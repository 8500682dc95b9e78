"""What every reward does: score many completions at once, each with the prompt it answers.

    scores = reward.score(prompts, completions)         # one Score for each pair, in their order

A completion that could not be scored has `value=None` and says why: it is counted and masked, and never a 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from whet.schema.records import Prompt
from whet.schema.rollouts import Completion, Score

Rule = Callable[[Prompt, Completion], float]
"""The value of one completion. Raises Unscored where none can be given."""
Gold = Callable[[Prompt], str | None]
"""A right completion, made of the row's reference; None for a row without one."""


class Unscored(Exception):
    """A rule cannot judge this completion; the text says why, without the row's place."""


class Reward(Protocol):
    """Says what completions are worth."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        """One score a pair of prompt and completion. Raises ValueError where their numbers differ."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleReward:
    """A pure function of prompt and completion as a reward."""

    rule: Rule
    gold: Gold | None = None
    """How a reference becomes a completion of full marks (1.0); None where a reference says nothing about the rule."""
    some_gold: bool = False
    """Whether the rule may have nothing to do with references: the gold check then asks that all pass, or none."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        return [self._one(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]

    def _one(self, prompt: Prompt, completion: Completion) -> Score:
        if failed := no_answer(completion):
            return failed
        try:
            return Score(value=self.rule(prompt, completion))
        except Unscored as reason:
            return Score(value=None, error=str(reason))


def no_answer(completion: Completion) -> Score | None:
    """The score of a completion that the engine could not generate; None for any other."""
    if completion.finish_reason != "error":
        return None
    return Score(value=None, error=f"no answer: {completion.error}")


def finite(value: float, who: str, parts: Mapping[str, float] | None = None) -> Score:
    """A score, unless the value is no number; `who` gave it."""
    if not math.isfinite(value):
        return Score(value=None, error=f"{who} gives {value}")
    return Score(value=value, parts=parts or {})


def failures(scores: Iterable[Score]) -> Counter[str]:
    """Why scores are missing, each reason with its number; what was found instead is left out."""
    return Counter(
        (score.error or "no reason given").partition(" (found ")[0] for score in scores if score.value is None
    )


def question(prompt: Prompt) -> str:
    """Text of the last user message."""
    return next((message.text for message in reversed(prompt.messages) if message.role == "user"), "")


def columns_of(prompt: Prompt) -> dict[str, Any]:
    """What rewards from outside are told of the row: its columns, its own `answer` and its `reference`."""
    columns: dict[str, Any] = {} if prompt.answer is None else {"answer": prompt.answer}
    columns |= prompt.columns  # a column that is called so and was left over is what the user means
    return columns if prompt.reference is None else columns | {"reference": prompt.reference}


def reference_of(prompt: Prompt) -> str:
    """The row's gold answer. Raises Unscored where there is none."""
    if prompt.reference is None or not prompt.reference.strip():
        raise Unscored("no reference to check against; add one, or use type=custom")
    return prompt.reference
