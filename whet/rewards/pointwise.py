"""Judging every answer alone: the mean of the votes that can be read (see `whet.rewards.parse`).

Additive five points with the reason before the score (Yuan et al., 2401.10020), or the score-first form, or the user's
template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from whet.config.judge import PointwiseForm
from whet.rewards.parse import FoundScore, find_score
from whet.rewards.template import fill
from whet.rewards.transcript import transcript
from whet.schema.records import Prompt
from whet.schema.rollouts import Judgement, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class PointForm:
    config: PointwiseForm
    template: str

    def shown(self, places: Sequence[int], key: str, votes: int) -> list[tuple[tuple[int, ...], int]]:
        return [((place,), vote) for place in places for vote in range(votes)]

    def question(self, prompt: Prompt, texts: Sequence[str]) -> str:
        (response,) = texts
        return fill(self.template, {"instruction": transcript(prompt.messages), "response": response})

    def read(self, reply: str, num: int, *, cut: bool) -> tuple[float, ...] | None:
        found = written_score(self.config, reply, cut=cut)
        return None if found is None else (found.value,)

    def scores(self, places: Sequence[int], judgements: Sequence[Judgement]) -> dict[int, Score]:
        """`parts` has one entry a readable vote, `votes` every reply as it was."""
        return {place: _mean([one for one in judgements if one.shown == (place,)]) for place in places}


def written_score(config: PointwiseForm, reply: str, *, cut: bool = False) -> FoundScore | None:
    """The score as it stands in a reply: the last one, with `score_first` the first."""
    take: Literal["first", "last"] = "first" if config.template == "score_first" else "last"
    return find_score(reply, config.low, config.high, take=take, cut=cut)


def _mean(judgements: Sequence[Judgement]) -> Score:
    parts = {f"vote_{vote}": one.reading[0] for vote, one in enumerate(judgements) if one.reading is not None}
    votes = tuple(one.reply for one in judgements)
    if parts:
        return Score(value=fmean(parts.values()), parts=parts, votes=votes)  # in any order: equal votes are a tie
    return Score(value=None, votes=votes, error=no_reading(judgements, "score"))


def no_reading(judgements: Sequence[Judgement], what: str) -> str:
    """Why nothing came of several replies."""
    failed = next((one.error for one in judgements if one.error), None)
    return f"the judge could not answer: {failed}" if failed else f"no {what} in {len(judgements)} replies"
