"""A round's completions as rows to read: what was asked and said, what it was worth, and what training made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from whet.experience.round_file import Round
from whet.rewards.transcript import images_of, transcript


def completion_rows(made: Round, advantages: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """A row a completion; `advantages` has those that are trained on, by their key, and the others have null."""
    for group in (*made.groups, *made.left_out):
        for completion, score in zip(group.completions, group.scores, strict=True):
            yield {
                "round": made.number,
                "key": completion.key,
                "prompt": transcript(group.prompt.messages),
                "completion": completion.text,
                "num_tokens": completion.num_tokens,
                "finish_reason": completion.finish_reason,
                "reward": score.value,
                "parts": dict(score.parts),
                "advantage": advantages.get(completion.key),
                "error": completion.error or score.error,
                **images_of(group.prompt),
            }
