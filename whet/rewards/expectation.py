"""A score as the mean over the scale, each score by the probability it had where the judge wrote one.

    reply         "... clear and complete. Score: 4"
    asked         log p("3" | prompt, "... Score: "), log p("4" | ...), ...     one number a score of the scale
    score         sum_s s p(s) / sum_s p(s)                                     G-Eval (Liu et al., 2303.16634), eq. 1
    mass          sum_s p(s)

It asks once more after every reply that can be read: the prompt and the reply up to its score, with the scores of the
scale as continuations (`Request.continuations`), under the model itself at temperature 1. The engine inside this
process measures them exactly, the prompt once for all of them. The reply is tokenised anew, together with what follows
it, so that a tokenizer which joins a space with a digit is asked for the token it would really write. Where one score
is the beginning of another (1 and 10, digit by digit) every score is followed by what ends it: the end of the turn, or
a line break where a reason comes after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from whet.config.judge import PointwiseForm
from whet.data.render import Renderer
from whet.rewards.pointwise import written_score
from whet.schema.records import Message
from whet.schema.rollouts import Completion, Judgement, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    config: PointwiseForm
    renderer: Renderer

    @property
    def scale(self) -> range:
        return range(int(self.config.low), int(self.config.high) + 1)

    def request(self, asked: Request, messages: tuple[Message, ...], reply: str) -> Request:
        """What is asked about the place of the score in a reply to `asked`. Raises ValueError where it has none."""
        found = written_score(self.config, reply)
        if found is None:
            raise ValueError("the reply has no score")
        begun = reply[: found.start]
        ids = self.renderer.begun(messages, [f"{begun}{score}" for score in self.scale])
        shared = _shared(ids)
        rests = [tuple(one[shared:]) for one in ids]
        if any(a != b and b[: len(a)] == a for a in rests for b in rests):
            rests = [tuple(one[shared:]) for one in self._ended(messages, begun)]
        return replace(asked, key=f"{asked.key}/scores", prompt_ids=tuple(ids[0][:shared]), continuations=tuple(rests))

    def weighed(self, judgement: Judgement, said: Completion) -> Judgement:
        """The judgement with the expected score, or unreadable where the engine could not say."""
        if said.finish_reason == "error":
            return replace(judgement, reading=None, error=said.error)
        highest = max(said.continuation_logprobs)
        shares = [math.exp(value - highest) for value in said.continuation_logprobs]
        expected = sum(score * share for score, share in zip(self.scale, shares, strict=True)) / sum(shares)
        return replace(judgement, reading=(expected,), mass=min(1.0, math.exp(highest) * sum(shares)))

    def _ended(self, messages: tuple[Message, ...], begun: str) -> list[tuple[int, ...]]:
        """The scores of the scale with what ends each."""
        if self.config.template == "score_first":
            return self.renderer.begun(messages, [f"{begun}{score}\n" for score in self.scale])
        ids = self.renderer.begun(messages, [f"{begun}{score}" for score in self.scale])
        return [(*one, self.renderer.end_id) for one in ids]


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """Length of what all rows begin with.

    >>> _shared([(1, 2, 3), (1, 2, 4, 5)])
    2
    """
    shortest = min(map(len, rows))
    return next((n for n in range(shortest) if len({row[n] for row in rows}) > 1), shortest)
