"""Does the reward give full marks to the right answers? Asked before training, with every row's own reference.

- exact, contains, numeric, math: the reference is the completion, put where the rule reads (`after`, `tag`, a box); for
  math also its bare number, where words stand around it: two equal texts would agree on anything
- tags: the reference stands in the last block; a reference that holds tags itself shows
- regex, json_schema: the reference is the completion; none is right where the rule is not about references at all, and
  then they are left out
- lengths, functions, models, judges and servers say nothing of references and are left out
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from whet.errors import DataError
from whet.rewards.composite import CompositeReward
from whet.rewards.format import JsonReward
from whet.rewards.math import MathReward
from whet.rewards.reward import Reward, RuleReward
from whet.schema.records import Origin, Prompt
from whet.schema.rollouts import Completion

FULL_MARKS = 1.0
SHOWN = 5
"""Rows that an error names."""

Checkable = RuleReward | MathReward | JsonReward


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldFailure:
    """A row whose own reference does not get full marks."""

    origin: Origin
    part: str
    """Part of a composite reward; empty for any other."""
    reference: str | None
    value: float | None
    error: str | None
    """Why there is no value."""
    bare: str | None = None
    """The bare number, where that is what was not accepted."""

    def describe(self) -> str:
        found = self.error if self.value is None else f"{self.value:g} for {_short(self.bare or self.reference)}"
        found = f"{found}, the number of {_short(self.reference)}" if self.bare else found
        return f"{self.origin}{f' ({self.part})' if self.part else ''}: {found}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldReport:
    """What the check found."""

    rows: int
    """Rows that were checked, by every part that can be."""
    checked: tuple[str, ...]
    """Parts that were checked; one of an empty name for a reward without parts."""
    left_out: tuple[str, ...]
    """Parts that references say nothing of."""
    failures: tuple[GoldFailure, ...]

    def describe(self) -> str:
        """One line."""
        if not self.checked:
            return "gold check: references say nothing of this reward"
        if not self.failures:
            return f"gold check: {self.rows:,} references, full marks for all"
        bad = len({failure.origin for failure in self.failures})
        shown = "; ".join(failure.describe() for failure in self.failures[:SHOWN])
        more = f"; and {len(self.failures) - SHOWN:,} more" if len(self.failures) > SHOWN else ""
        return f"gold check: {bad:,} of {self.rows:,} references do not get full marks: {shown}{more}"

    def error(self) -> DataError | None:
        """For whoever refuses to train on this; None where all is well."""
        if not self.failures:
            return None
        first = self.failures[0].origin
        return DataError(
            self.describe(), file=first.file, line=first.line, field="reward",
            fix="correct the rows, or take a reward that reads their references",
        )  # fmt: skip


def gold_check(reward: Reward, prompts: Sequence[Prompt]) -> GoldReport:
    """Score every row's own reference as the completion."""
    checked: list[str] = []
    left_out: list[str] = []
    failures: list[GoldFailure] = []
    for name, part in _parts(reward):
        found = _failures(name, part, prompts) if isinstance(part, Checkable) else None
        if found is None:
            left_out.append(name)
        else:
            checked.append(name)
            failures += found
    return GoldReport(rows=len(prompts), checked=tuple(checked), left_out=tuple(left_out), failures=tuple(failures))


def _parts(reward: Reward) -> Iterator[tuple[str, Reward]]:
    match reward:
        case CompositeReward(parts=parts):
            yield from ((part.config.name, part.reward) for part in parts)
        case _:
            yield "", reward


def _failures(name: str, reward: Checkable, prompts: Sequence[Prompt]) -> list[GoldFailure] | None:
    """The rows without full marks; None where references say nothing of the rule."""
    if reward.gold is None:
        return None
    texts = [reward.gold(prompt) for prompt in prompts]
    scores = reward.score(prompts, [_said(text or "") for text in texts])
    if reward.some_gold and not any(score.value == FULL_MARKS for score in scores):
        return None
    failures = [
        GoldFailure(
            origin=prompt.origin, part=name, reference=prompt.reference,
            value=None if text is None else score.value,
            error="the row has no reference" if text is None else score.error,
        )
        for prompt, text, score in zip(prompts, texts, scores, strict=True)
        if text is None or score.value != FULL_MARKS
    ]  # fmt: skip
    return failures + _bare_failures(name, reward, prompts) if isinstance(reward, MathReward) else failures


def _bare_failures(name: str, reward: MathReward, prompts: Sequence[Prompt]) -> list[GoldFailure]:
    """The rows whose reference has a number among words that is not accepted alone."""
    asked = [(prompt, text) for prompt in prompts if (text := reward.bare(prompt)) is not None]
    scores = reward.score([prompt for prompt, _ in asked], [_said(text) for _, text in asked])
    return [
        GoldFailure(
            origin=prompt.origin, part=name, reference=prompt.reference, value=score.value, error=score.error, bare=text
        )
        for (prompt, text), score in zip(asked, scores, strict=True)
        if score.value != FULL_MARKS
    ]


def _said(text: str) -> Completion:
    return Completion(key="gold", ids=(), text=text, logprobs=(), finish_reason="stop")


def _short(text: str | None) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else f"{shown[:28]}...{shown[-28:]}"
