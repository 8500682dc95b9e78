"""Judging answers two by two, each pair in both orders.

Judges favour a place (Zheng et al., 2306.05685): a verdict counts only when it survives the swap, else it is a tie. A
pair of which one order could not be read says nothing. Answers of the same text are not compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from whet.config.judge import Pairwise
from whet.rewards.parse import Verdict, parse_verdict
from whet.rewards.pointwise import no_reading
from whet.rewards.template import fill
from whet.rewards.tournament import Match, bradley_terry, win_chances, win_shares
from whet.rewards.transcript import transcript
from whet.schema.records import Prompt
from whet.schema.rollouts import Judgement, Score

POINTS: dict[Verdict, tuple[float, float]] = {"first": (1.0, 0.0), "second": (0.0, 1.0), "tie": (0.5, 0.5)}
"""What a verdict gives to the answer shown first, and to the other."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The two verdicts on one pair, both told from the same side: `first` is a win of it. None: unreadable."""

    shown_first: Verdict | None
    shown_second: Verdict | None

    @property
    def readable(self) -> bool:
        return None not in (self.shown_first, self.shown_second)

    @property
    def consistent(self) -> bool:
        return self.shown_first is not None and self.shown_first == self.shown_second

    @property
    def points(self) -> float:
        """1 a win, 0 a loss, a half where the orders disagree, or agree on a tie, or one cannot be read."""
        return POINTS[self.shown_first or "tie"][0] if self.consistent else 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PairForm:
    config: Pairwise
    template: str

    def shown(self, places: Sequence[int], key: str, votes: int) -> list[tuple[tuple[int, ...], int]]:
        orders = [order for i, j in combinations(places, 2) for order in ((i, j), (j, i))]
        return [(order, vote) for order in orders for vote in range(votes)]

    def question(self, prompt: Prompt, texts: Sequence[str]) -> str:
        first, second = texts
        return fill(self.template, {"instruction": transcript(prompt.messages), "first": first, "second": second})

    def read(self, reply: str, num: int, *, cut: bool) -> tuple[float, ...] | None:
        verdict = parse_verdict(reply, cut=cut)
        return None if verdict is None else POINTS[verdict]

    def scores(self, places: Sequence[int], judgements: Sequence[Judgement]) -> dict[int, Score]:
        """`parts` counts an answer's comparisons by how they ended."""
        matches = [
            Match(i, j, comparison.points) for (i, j), comparison in compared(judgements).items() if comparison.readable
        ]
        match self.config.aggregate:
            case "win_share":
                values = win_shares(matches)
            case "bradley_terry":
                values = win_chances(bradley_terry(matches))
        return {place: _score(place, values.get(place), matches, judgements) for place in places}


def compared(judgements: Sequence[Judgement]) -> dict[tuple[int, int], Comparison]:
    """Every pair that was asked about, by its places in rising order, told from the side of the first of them."""
    votes: dict[tuple[int, ...], list[Verdict | None]] = {}
    for one in judgements:
        votes.setdefault(one.shown, []).append(_verdict(one))
    verdicts = {shown: majority(said) for shown, said in votes.items()}
    return {(i, j): Comparison(verdicts[i, j], swapped(verdicts.get((j, i)))) for i, j in verdicts if i < j}


def majority(votes: Sequence[Verdict | None]) -> Verdict | None:
    """The most frequent readable verdict; a draw between verdicts is a tie; None where no vote could be read."""
    ranked = Counter(vote for vote in votes if vote is not None).most_common(2)
    if not ranked:
        return None
    return "tie" if len(ranked) == 2 and ranked[0][1] == ranked[1][1] else ranked[0][0]


def swapped(verdict: Verdict | None) -> Verdict | None:
    """The same verdict told from the other side."""
    match verdict:
        case "first":
            return "second"
        case "second":
            return "first"
        case _:
            return verdict


def _verdict(judgement: Judgement) -> Verdict | None:
    return next((verdict for verdict, points in POINTS.items() if points == judgement.reading), None)


def _score(place: int, value: float | None, matches: Sequence[Match], judgements: Sequence[Judgement]) -> Score:
    if value is None:
        mine = [one for one in judgements if place in one.shown]
        return Score(value=None, error=no_reading(mine, "verdict in both orders") if mine else "nothing to compare")
    points = Counter(match.points_of(place) for match in matches if match.has(place))
    return Score(value=value, parts={"won": points[1.0], "tied": points[0.5], "lost": points[0.0]})
