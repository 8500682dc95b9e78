"""How different texts are from each other, in three numbers."""

from __future__ import annotations

import random
from collections.abc import Sequence

from whet.data.similar import rouge_l
from whet.data.words import words

PAIRS = 2000
"""Pairs of texts compared: drawn with a fixed seed where there are more."""


def diversity(texts: Sequence[str]) -> dict[str, float]:
    """`distinct_1` and `distinct_2`, different words (pairs of words) over all of them (Li et al., 1510.03055), and
    `self_rouge_l`, the mean ROUGE-L of two of the texts; what there is nothing to measure on is left out.

    distinct-n falls with the amount of text: compare it between sets of the same size.
    """
    said = [words(text) for text in texts]
    numbers = {}
    for n in (1, 2):
        grams = [tuple(line[start : start + n]) for line in said for start in range(len(line) - n + 1)]
        if grams:
            numbers[f"distinct_{n}"] = len(set(grams)) / len(grams)
    if len(said) > 1:
        numbers["self_rouge_l"] = sum(rouge_l(said[i], said[j]) for i, j in _pairs(len(said))) / len(_pairs(len(said)))
    return numbers


def _pairs(num: int) -> list[tuple[int, int]]:
    """Every pair of places, or as many as are compared."""
    if num * (num - 1) // 2 <= PAIRS:
        return [(i, j) for i in range(num) for j in range(i)]
    rng = random.Random(0)
    return [(a, b) for a, b in (rng.sample(range(num), 2) for _ in range(PAIRS))]
