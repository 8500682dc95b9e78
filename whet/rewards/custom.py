"""The user's own function as a reward.

    def accuracy(prompt, completion, *, reference): return float(completion.strip() == reference)

It may be async, and may return a mapping of parts. It runs in a process of its own (`whet.rewards.process`), so that it
can be stopped; what its module loads stays there between calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whet.config.rewards import Custom
from whet.rewards.process import Call, Worker
from whet.rewards.reward import columns_of, no_answer, question
from whet.rewards.transcript import images_of
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion, Score


class FunctionReward:
    """Calls the function once for every completion."""

    def __init__(self, config: Custom, *, field: str = "reward.path") -> None:
        """Raises ConfigError, for `field`, where there is no such function."""
        self._worker = Worker(
            config.path, timeout=config.timeout, concurrency=config.concurrency, what=config.path, field=field
        )
        self._takes = self._worker.parameters()

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        scores = [no_answer(completion) for completion in completions]
        calls = [
            Call(args=(question(prompt), completion.text), columns=self._columns(prompt))
            for prompt, completion, failed in zip(prompts, completions, scores, strict=True)
            if failed is None
        ]
        rest = iter(self._worker.call(calls))
        return [next(rest) if score is None else score for score in scores]

    def _columns(self, prompt: Prompt) -> dict[str, Any]:
        """The row's columns, its answer, reference and pictures, as far as the function takes them."""
        return {
            name: value
            for name, value in (columns_of(prompt) | images_of(prompt)).items()
            if name not in ("prompt", "completion") and (self._takes is None or name in self._takes)
        }
