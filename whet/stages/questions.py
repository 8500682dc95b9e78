"""The prompts of a stage that generates, read anew on every pass: memory holds none but the one at hand.

The first pass says what is wrong with any of them before a model is loaded, and counts them; the second asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from whet.config.data import Data
from whet.data.ledger import Ledger
from whet.data.render import Renderer
from whet.errors import DataError
from whet.experience.collect import keyed
from whet.rewards.gold import gold_check
from whet.rewards.reward import Reward
from whet.schema.records import Prompt
from whet.stages.prompts import fits

GOLD = "its reference does not get full marks"
"""Why a row is left out after the gold check."""
WINDOW = 1024
"""Prompts whose references are checked together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Prompts that were surveyed."""

    num: int
    ledger: Ledger
    gold: str
    """What the gold check found, in words."""
    _read: Callable[[Ledger], Iterator[Prompt]]
    _left_out: frozenset[int]
    """Places of prompts that are not asked."""

    def __iter__(self) -> Iterator[tuple[Prompt, str]]:
        """The prompts with their names, from the beginning."""
        for place, (prompt, key) in enumerate(keyed(self._read(Ledger()))):
            if place not in self._left_out:
                yield prompt, key


def survey(
    read: Callable[[Ledger], Iterator[Prompt]], data: Data, renderer: Renderer, reward: Reward
) -> Questions:
    """Read every prompt once. Prompts longer than `data.max_length` are left out (counted), or an error where the plan
    says so; so are those whose own reference the reward does not give full marks.

    Raises DataError where none is left.
    """
    ledger, left_out, num, gold = Ledger(), set[int](), 0, _Gold(reward, data)
    prompts = enumerate(read(ledger))
    while window := list(islice(prompts, WINDOW)):
        fitting = [(place, prompt) for place, prompt in window if fits(prompt, data, renderer, ledger)]
        sound = gold.sound(fitting, ledger)
        num += len(sound)
        left_out |= {place for place, _ in window} - sound
    if not num:
        raise DataError("no prompts left", field="data.files", found=ledger.describe(), fix="raise data.max_length")
    return Questions(num=num, ledger=ledger, gold=gold.describe(), _read=read, _left_out=frozenset(left_out))


class _Gold:
    """The gold check, window by window."""

    def __init__(self, reward: Reward, data: Data) -> None:
        self._reward, self._data, self._checked, self._bad = reward, data, 0, 0

    def sound(self, prompts: list[tuple[int, Prompt]], ledger: Ledger) -> set[int]:
        """The places of the prompts that may be asked."""
        report = gold_check(self._reward, [prompt for _, prompt in prompts])
        error = report.error()
        if error is not None and self._data.on_bad_row == "error":
            raise error
        bad = {failure.origin for failure in report.failures}
        for origin in bad:
            ledger.drop(GOLD, origin)
        self._checked += len(prompts) if report.checked else 0
        self._bad += len(bad)
        return {place for place, prompt in prompts if prompt.origin not in bad}

    def describe(self) -> str:
        if not self._checked:
            return "gold check: references say nothing of this reward"
        found = f"{self._bad:,} without full marks left out" if self._bad else "full marks for all"
        return f"gold check: {self._checked:,} references, {found}"
