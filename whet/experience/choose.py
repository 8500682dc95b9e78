"""Which prompts a stage takes: new ones, that no evaluation asks, and that pass its filters.

Two prompts are the same where they show the same pictures and differ in case, width, spaces and such punctuation as
means nothing in a sum; a prompt of several turns is compared whole. How like two are (`max_similarity`) is told from
the words of those that show the same pictures: a question about another one is another question. Every prompt refused
is refused for one reason, the first of `REASONS`, and counted under it.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from whet.config.prompts import GivenPrompts, SelfInstruct
from whet.data.similar import Similar
from whet.data.words import words
from whet.experience.folded import folded

Refused = Literal[
    "evaluation", "like_evaluation", "seen", "duplicate", "similar", "short", "long", "keyword", "beginning",
    "punctuation",
]  # fmt: skip
REASONS: dict[Refused, str] = {
    "evaluation": "is asked in an evaluation",
    "like_evaluation": "is too like one asked in an evaluation",
    "seen": "was seen before",
    "duplicate": "is there twice",
    "similar": "is too like another",
    "short": "has too few words",
    "long": "has too many words",
    "keyword": "has a word it must not have",
    "beginning": "begins with words it must not",
    "punctuation": "begins with a sign",
}
NEAR = 0.7
"""ROUGE-L from which the account calls a prompt near an evaluation's, where no filter says another."""
EXAMPLES = 5
MEANT = re.compile(r"[-/*%&@#\\_·()\[\]{}]|\.(?=\d)|(?<=\d)[,:](?=\s*\d)|(?<=[\d)])!|['’′](?=['’′]*\()")
"""Punctuation by its class that means something in a sum, a path or a name: 1.5, 3:2, 5!, f'(x)."""
DASHES = str.maketrans("−–", "--")
"""Other signs for minus."""
OPENING = re.compile(r"[\w\"'“‘«「『《([{<#*@$/\\`]")


def fingerprint(text: str, pictures: Sequence[str] = ()) -> str:
    """Names a prompt: the same for texts that differ in case, width, spaces and punctuation only. `3 + 2` and `3 - 2`
    are two, and `(2 + 3) * 4` and `2 + 3 * 4`: signs that may be arithmetic stay. `pictures` are the hashes of those
    that it shows, in their order."""
    plain = folded(text).translate(DASHES)
    meant = {match.start() for match in MEANT.finditer(plain)}
    bare = "".join(_spaced(sign, place in meant) for place, sign in enumerate(plain))
    said = " ".join(bare.split()) or plain.strip()
    return hashlib.sha256("\n".join((said, *pictures)).encode()).hexdigest()


def _spaced(sign: str, meant: bool) -> str:
    """Letters and digits as they are; a symbol, or punctuation that is meant, as a word of its own; else a blank."""
    kind = unicodedata.category(sign)[0]
    return f" {sign} " if kind == "S" or meant else " " if kind == "P" else sign


def digest(fingerprints: Iterable[str]) -> str:
    """Names a set of prompts, whatever their order."""
    return hashlib.sha256("\n".join(sorted(set(fingerprints))).encode()).hexdigest()


class _Alike:
    """Prompts that are asked which of them is like another, of those that show the same pictures."""

    def __init__(self, threshold: float) -> None:
        self._beside: defaultdict[tuple[str, ...], tuple[Similar, list[str]]] = defaultdict(
            lambda: (Similar(threshold), [])
        )

    def add(self, text: str, pictures: Sequence[str]) -> None:
        similar, texts = self._beside[tuple(pictures)]
        similar.add(words(text))
        texts.append(text)

    def find(self, said: Sequence[str], pictures: Sequence[str]) -> str | None:
        """The text of one that is alike, to these words; None where there is none."""
        if tuple(pictures) not in self._beside:
            return None
        similar, texts = self._beside[tuple(pictures)]
        near = similar.find(said)
        return None if near is None else texts[near[0]]


@dataclass(slots=True)
class Chooser:
    """Prompts come in one after another; it says which is taken, and keeps the account."""

    filters: GivenPrompts | SelfInstruct
    taken: dict[str, str] = field(default_factory=dict)
    """Fingerprint and text of the prompts taken, in order."""
    refused: Counter[Refused] = field(default_factory=Counter)
    examples: dict[Refused, list[dict[str, Any]]] = field(default_factory=dict)
    near_evaluation: int = 0
    """Prompts taken that are near one of an evaluation: only where `max_similarity` lets them through."""
    _evaluation: set[str] = field(default_factory=set)
    _seen: set[str] = field(default_factory=set)
    _like_evaluation: _Alike = field(init=False)
    _like_others: _Alike = field(init=False)
    _keywords: re.Pattern[str] | None = field(init=False)

    def __post_init__(self) -> None:
        self._like_evaluation = _Alike(self.filters.max_similarity or NEAR)
        self._like_others = _Alike(self.filters.max_similarity or NEAR)
        listed = "|".join(re.escape(word) for word in self.filters.keywords)
        self._keywords = re.compile(rf"(?<!\w)(?:{listed})(?!\w)", re.IGNORECASE) if listed else None

    def exclude(self, text: str, pictures: Sequence[str] = ()) -> None:
        """A prompt of an evaluation: never taken."""
        self._evaluation.add(fingerprint(text, pictures))
        self._like_evaluation.add(text, pictures)

    def saw(self, text: str, pictures: Sequence[str] = ()) -> None:
        """A prompt used before: not taken again."""
        self._seen.add(fingerprint(text, pictures))
        self._remember(text, pictures)

    def offer(self, text: str, pictures: Sequence[str] = ()) -> bool:
        """Whether the prompt is taken."""
        name = fingerprint(text, pictures)
        found = self._why_not(text, pictures, name)
        if found is not None:
            reason, other = found
            self.refused[reason] += 1
            shown = self.examples.setdefault(reason, [])
            if len(shown) < EXAMPLES:
                shown.append({"prompt": text} | ({"like": other} if other is not None else {}))
            return False
        self.taken[name] = text
        self._remember(text, pictures)
        if self.filters.max_similarity is None and self._like_evaluation.find(words(text), pictures) is not None:
            self.near_evaluation += 1
        return True

    def account(self, files: Sequence[str]) -> dict[str, Any]:
        """The proof that nothing taken is asked in an evaluation: both sets named, and what they have in common.

        Raises AssertionError where they have something in common.
        """
        overlap = len(self._evaluation & self.taken.keys())
        assert overlap == 0, f"{overlap} prompts of an evaluation were taken"
        return {
            "evaluation": {"files": list(files), "num": len(self._evaluation), "sha256": digest(self._evaluation)},
            "taken": {"num": len(self.taken), "sha256": digest(self.taken)},
            "in_both": overlap,
            "near": {"rouge_l": self.filters.max_similarity or NEAR, "num": self.near_evaluation},
        }

    @property
    def evaluation(self) -> set[str]:
        """Fingerprints of the prompts that evaluations ask."""
        return self._evaluation

    def _remember(self, text: str, pictures: Sequence[str]) -> None:
        if self.filters.max_similarity is not None:
            self._like_others.add(text, pictures)

    def _why_not(self, text: str, pictures: Sequence[str], name: str) -> tuple[Refused, str | None] | None:
        filters, said = self.filters, words(text)
        if name in self._evaluation:
            return "evaluation", None
        if name in self._seen:
            return "seen", None
        if name in self.taken:
            return "duplicate", None
        if len(said) < filters.min_words:
            return "short", None
        if filters.max_words is not None and len(said) > filters.max_words:
            return "long", None
        if self._keywords is not None and (found := self._keywords.search(text)):
            return "keyword", found[0]
        if text.strip().casefold().startswith(tuple(word.casefold() for word in filters.beginnings)):
            return "beginning", None
        if not filters.punctuation_first and not OPENING.match(text.strip()):
            return "punctuation", None
        if filters.max_similarity is not None:
            if (near := self._like_evaluation.find(said, pictures)) is not None:
                return "like_evaluation", near
            if (near := self._like_others.find(said, pictures)) is not None:
                return "similar", near
        return None
