"""Texts alike by ROUGE-L, among many, without comparing each with all.

    near = Similar(0.7)
    near.add(words("Name a bird that cannot fly."))
    near.find(words("Name one bird that cannot fly!"))        # (0, 0.92...): place and ROUGE-L of the first one found

ROUGE-L is F1 of the longest common subsequence, 2 L / (n + m) (Lin 2004). L is at most the number of words in common,
so a text that reaches the threshold shares at least ceil(t n / (2 - t)) words with a query of n, among them one of the
rarest n + 1 - that many: only texts under those words are looked at, and of these only such with enough words in common
are aligned. Nothing that reaches the threshold is missed.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

EPSILON = 1e-9


def rouge_l(left: Sequence[str], right: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words; 0 where one has none.

    >>> round(rouge_l("a b c d".split(), "a x c d".split()), 2)
    0.75
    """
    return 2 * common(left, right) / (len(left) + len(right)) if left and right else 0.0


def common(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence, a bit for each word of `left` (Hyyro 2004)."""
    places: dict[str, int] = defaultdict(int)
    for index, word in enumerate(left):
        places[word] |= 1 << index
    every = (1 << len(left)) - 1
    free = every
    for word in right:
        matched = free & places.get(word, 0)
        free = (free + matched) | (free - matched)
    return len(left) - (free & every).bit_count()


class Similar:
    """Texts, as words, that are asked which of them is like another.

    `threshold` in (0, 1]: the least ROUGE-L that counts as alike.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._texts: list[tuple[str, ...]] = []
        self._counts: list[Counter[str]] = []
        self._holders: defaultdict[str, list[int]] = defaultdict(list)
        self._exact: dict[tuple[str, ...], int] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: Sequence[str]) -> None:
        place, counts = len(self._texts), Counter(text)
        self._texts.append(tuple(text))
        self._counts.append(counts)
        self._exact.setdefault(tuple(text), place)
        for word in counts:
            self._holders[word].append(place)

    def find(self, text: Sequence[str]) -> tuple[int, float] | None:
        """Place and ROUGE-L of a text that is alike, not always the most alike; None where there is none."""
        if (same := self._exact.get(tuple(text))) is not None and text:
            return same, 1.0
        counts = Counter(text)
        for place in self._candidates(text, counts):
            other = self._texts[place]
            needed = math.ceil(self.threshold * (len(text) + len(other)) / 2 - EPSILON)
            if min(len(text), len(other)) < needed or (counts & self._counts[place]).total() < needed:
                continue
            length = common(text, other)
            if length >= needed:
                return place, 2 * length / (len(text) + len(other))
        return None

    def _candidates(self, text: Sequence[str], counts: Counter[str]) -> list[int]:
        """Places of the texts under the rarest words of the query, the first added first."""
        needed = math.ceil(self.threshold * len(text) / (2 - self.threshold) - EPSILON)
        allowed, found = len(text) - needed, set[int]()
        for word in sorted(counts, key=lambda word: len(self._holders.get(word, ()))):
            found.update(self._holders.get(word, ()))
            allowed -= counts[word]
            if allowed < 0:
                break
        return sorted(found)
