"""A language model's judgement as a reward: every completion is judged several times, through an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whet.rewards.judge import PointJudge
from whet.rollout.engine import Engine, answers
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedReward:
    """The mean of a judge's readable votes. The engine belongs to the caller."""

    judge: PointJudge
    engine: Engine

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        both = zip(prompts, completions, strict=True)
        asked = [self.judge.requests(prompt, completion) for prompt, completion in both]
        replies = iter(answers(self.engine, [request for requests in asked for request in requests]))
        return [
            self.judge.score(completion, [next(replies) for _ in requests])
            for completion, requests in zip(completions, asked, strict=True)
        ]
