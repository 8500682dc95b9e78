"""Scored answers of a prompt -> which are kept as right, which are wrong, and why the others are neither.

    fates = sort_group(group, Accept(order="shortest", max_per_prompt=2))
    fates.of[3]          "accepted", "rejected", "duplicate", ...
    fates.kept           places of the accepted answers, in the order asked for

Every answer has exactly one fate. An answer without a score is never a wrong one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from whet.config.reject import Accept
from whet.experience.folded import folded
from whet.experience.sampled import Sampled

Fate = Literal[
    "accepted", "over_limit", "cut", "duplicate", "rejected", "rejected_duplicate", "empty", "unscored", "failed"
]  # fmt: skip
FATES: dict[Fate, str] = {
    "accepted": "right and kept",
    "over_limit": "right, but accept.max_per_prompt others were kept",
    "cut": "right, but ended at rollout.max_new_tokens",
    "duplicate": "right, and the same text as another",
    "rejected": "wrong",
    "rejected_duplicate": "wrong, and the same text as another, or as a right one",
    "empty": "empty",
    "unscored": "without a score",
    "failed": "not answered",
}
"""What becomes of an answer, in words."""
SHINGLE = 3
"""Characters of the pieces by which answers are compared: words are not told apart in every script."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fates:
    """What became of the answers of one prompt."""

    of: tuple[Fate, ...]
    """In the order of the answers."""
    is_right: tuple[bool, ...]
    """Whether each answer has a score of at least accept.min_score, kept or not."""
    scored: int
    """Answers with a score."""
    kept: tuple[int, ...]
    """Places of the accepted answers, in the order they are kept in."""
    wrong: tuple[int, ...]
    """Places of the rejected ones, in the order they were drawn in."""

    @property
    def right(self) -> int:
        return sum(self.is_right)


def sort_group(group: Sampled, accept: Accept) -> Fates:
    """Every answer's fate; a function of the group alone."""
    right = [answer.score is not None and answer.score >= accept.min_score for answer in group.answers]
    fates = [_first_look(group, place, is_right, accept) for place, is_right in enumerate(right)]
    _mark_disputed(group, right, fates)
    if accept.unique:
        _mark_duplicates(group, fates)
    texts = {place: group.answers[place].text for place, fate in enumerate(fates) if fate == "accepted"}
    kept = arrange(texts, accept.order)
    for place in kept[accept.max_per_prompt :] if accept.max_per_prompt is not None else ():
        fates[place] = "over_limit"
    return Fates(
        of=tuple(fates),
        is_right=tuple(right),
        scored=sum(answer.score is not None for answer in group.answers),
        kept=tuple(kept[: accept.max_per_prompt]),
        wrong=tuple(place for place, fate in enumerate(fates) if fate == "rejected"),
    )


def _first_look(group: Sampled, place: int, right: bool, accept: Accept) -> Fate:
    answer = group.answers[place]
    if answer.finish_reason == "error":
        return "failed"
    if answer.score is None:
        return "unscored"
    if not answer.text.strip():
        return "empty"
    if not right:
        return "rejected"
    return "cut" if answer.finish_reason == "length" and not accept.cut else "accepted"


def _mark_disputed(group: Sampled, right: list[bool], fates: list[Fate]) -> None:
    """A judge that is not sure calls the same text right and wrong: it teaches nothing as a wrong answer, and as the
    other half of a pair less."""
    texts = {plain(answer.text) for answer, is_right in zip(group.answers, right, strict=True) if is_right}
    for place, fate in enumerate(fates):
        if fate == "rejected" and plain(group.answers[place].text) in texts:
            fates[place] = "rejected_duplicate"


def _mark_duplicates(group: Sampled, fates: list[Fate]) -> None:
    """Of answers with the same text and the same worth the first stays."""
    seen = set[tuple[str, Fate]]()
    for place, fate in enumerate(fates):
        if fate not in ("accepted", "rejected"):
            continue
        known = (plain(group.answers[place].text), fate)
        if known in seen:
            fates[place] = "duplicate" if fate == "accepted" else "rejected_duplicate"
        seen.add(known)


def plain(text: str) -> str:
    """What two texts have in common that differ in case, width of characters and blanks only.

    >>> plain("The  answer\\nis １２.")
    'the answer is 12.'
    """
    return " ".join(folded(text).split())


def arrange(texts: dict[int, str], order: Literal["first", "shortest", "varied"]) -> list[int]:
    """The places of the texts, those to keep first. Of equals the one drawn first comes first."""
    match order:
        case "first":
            return sorted(texts)
        case "shortest":
            return sorted(texts, key=lambda place: (len(texts[place]), place))
        case "varied":
            return _farthest_first(texts)


def _farthest_first(texts: dict[int, str]) -> list[int]:
    """Begin with the first; then always the text whose nearest among those taken is farthest (Gonzalez 1985)."""
    pieces = {place: shingles(text) for place, text in texts.items()}
    rest, taken = sorted(pieces), list[int]()
    nearest = dict.fromkeys(rest, 2.0)
    while rest:
        place = max(rest, key=lambda one: (nearest[one], -one))
        rest.remove(place)
        taken.append(place)
        for other in rest:
            nearest[other] = min(nearest[other], distance(pieces[place], pieces[other]))
    return taken


def shingles(text: str) -> frozenset[str]:
    """All pieces of three characters in a text; a shorter text is one piece."""
    known = plain(text)
    return frozenset(known[start : start + SHINGLE] for start in range(max(1, len(known) - SHINGLE + 1)))


def distance(left: frozenset[str], right: frozenset[str]) -> float:
    """Jaccard distance: 0 for the same pieces, 1 for none in common."""
    return 1 - len(left & right) / len(left | right)


def pair_up(group: Sampled, fates: Fates, num: int) -> list[tuple[int, int]]:
    """At most `num` pairs (right, wrong): each right answer with the wrong one nearest to it in length.

    Where right answers differ from wrong ones in length as well, a preference teaches the length first.
    """
    wrong: list[int] = list(fates.wrong)
    pairs = []
    for chosen in fates.kept[:num]:
        if not wrong:
            break
        length = len(group.answers[chosen].text)
        rejected = min(wrong, key=lambda place: (abs(len(group.answers[place].text) - length), place))
        wrong.remove(rejected)
        pairs.append((chosen, rejected))
    return pairs


