"""Prompts and completions made by hand."""

from __future__ import annotations

from whet.rewards.reward import Reward
from whet.schema.records import Message, Origin, Prompt
from whet.schema.rollouts import Completion, Score


def prompt(reference: str | None = None, *, line: int = 7, **columns: object) -> Prompt:
    messages = (Message("system", "Be short."), Message("user", "How much?"))
    return Prompt(messages=messages, reference=reference, columns=columns, origin=Origin(file="a.jsonl", line=line))


def completion(text: str, *, ids: tuple[int, ...] = (1,), error: str | None = None) -> Completion:
    return Completion(
        key="k#0", ids=ids, text=text, logprobs=(), finish_reason="error" if error else "stop", error=error
    )


def score(reward: Reward, text: str, reference: str | None = None, **columns: object) -> Score:
    """The score of one completion."""
    (scored,) = reward.score([prompt(reference, **columns)], [completion(text)])
    return scored


def value(reward: Reward, text: str, reference: str | None = None) -> float:
    """The same where there must be a value."""
    scored = score(reward, text, reference)
    assert scored.value is not None, scored.error
    return scored.value
