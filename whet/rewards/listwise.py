"""Judging all answers of a prompt in one reply, which ranks them.

The order in which they are shown is drawn anew for every vote, from the seed, so that no answer owns a place. Of n
answers the one of rank r is worth (n - r) / (n - 1): 1 the best, 0 the worst; the score is the mean over the votes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from whet.rewards.parse import parse_ranking
from whet.rewards.pointwise import no_reading
from whet.rewards.template import fill
from whet.rewards.transcript import transcript
from whet.schema.records import Prompt
from whet.schema.rollouts import Judgement, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class ListForm:
    template: str
    seed: int

    def shown(self, places: Sequence[int], key: str, votes: int) -> list[tuple[tuple[int, ...], int]]:
        if len(places) < 2:
            return []
        return [(self._order(places, key, vote), vote) for vote in range(votes)]

    def question(self, prompt: Prompt, texts: Sequence[str]) -> str:
        responses = "\n\n".join(f"<answer {n}>\n{text}\n</answer {n}>" for n, text in enumerate(texts, start=1))
        return fill(self.template, {"instruction": transcript(prompt.messages), "responses": responses})

    def read(self, reply: str, num: int, *, cut: bool) -> tuple[float, ...] | None:
        return parse_ranking(reply, num, cut=cut)

    def scores(self, places: Sequence[int], judgements: Sequence[Judgement]) -> dict[int, Score]:
        """`parts` has the rank an answer got in each readable vote."""
        if len(places) < 2:
            return dict.fromkeys(places, Score(value=None, error="nothing to compare"))
        ranks = {
            vote: dict(zip(one.shown, one.reading, strict=True))
            for vote, one in enumerate(judgements)
            if one.reading is not None
        }
        if not ranks:
            return dict.fromkeys(places, Score(value=None, error=no_reading(judgements, "ranking")))
        scores = {}
        for place in places:
            mine = {f"rank_{vote}": by_place[place] for vote, by_place in ranks.items()}
            mean = sum(mine.values()) / len(mine)
            scores[place] = Score(value=(len(places) - mean) / (len(places) - 1), parts=mine)
        return scores

    def _order(self, places: Sequence[int], key: str, vote: int) -> tuple[int, ...]:
        order = list(places)
        random.Random(f"shown {self.seed} {key} {vote}").shuffle(order)
        return tuple(order)
