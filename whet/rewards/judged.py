"""A language model's judgement as a reward: every completion is judged several times, through an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whet.rewards.judge import Judge
from whet.rollout.engine import Engine, answers
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion, Group, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedReward:
    """What a judge of single answers says. The engine belongs to the caller."""

    judge: Judge
    engine: Engine

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        groups = [
            Group(prompt=prompt, completions=(completion,), scores=())
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        judged = self.judge.judge(groups, lambda requests: answers(self.engine, requests))
        return [score for group in judged for score in group.scores]
