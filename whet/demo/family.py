"""What a family of playground tasks must offer, and the words for judging an answer."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

Constraints = dict[str, Any]  # what a task demands, as plain JSON values: {"length": 5, "start": "K"}


@dataclass(frozen=True)
class Criterion:
    """One yes/no question about an answer."""

    text: str  # "starts with K"
    met: bool


@dataclass(frozen=True)
class Family:
    """Four functions that make a kind of task. They hold no state: the caller's `Random` decides everything."""

    draw: Callable[[Random], Constraints]  # a task
    ask: Callable[[Random, Constraints], str]  # its wording; the same task can be asked in several ways
    criteria: Callable[[Constraints, str], list[Criterion]]  # exact; the first one is about the answer's form
    answer: Callable[[Random, Constraints, float], str]  # one answer, wrong with about the given probability a demand


def reform(form: Criterion, others: list[Criterion]) -> list[Criterion]:
    """An answer that misses its form ("one word", "valid JSON") has nothing else to be judged on."""
    return [form, *others] if form.met else [form]
