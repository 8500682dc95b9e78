"""Completions and groups by hand, and a judge's voice that is a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from whet.schema.records import Message, Prompt
from whet.schema.rollouts import Completion, Group, Request

QUESTION = Prompt(messages=(Message("user", "Name {a} city."),))


def completion(text: str, key: str = "k#0", error: str | None = None) -> Completion:
    return Completion(
        key=key, ids=(1,), text=text, logprobs=(), finish_reason="error" if error else "stop", error=error
    )


def group_of(*answers: str | Completion, key: str = "k", prompt: Prompt = QUESTION) -> Group:
    """A group that nobody has judged yet."""
    completions = [
        answer if isinstance(answer, Completion) else completion(answer, f"{key}#{place}")
        for place, answer in enumerate(answers)
    ]
    return Group(prompt=prompt, completions=tuple(completions), scores=())


def said(speak: Callable[[Request], str | Completion]) -> Callable[[Sequence[Request]], list[Completion]]:
    """Whoever answers each request with the function's words."""

    def answer(requests: Sequence[Request]) -> list[Completion]:
        spoken = [(request, speak(request)) for request in requests]
        return [
            words if isinstance(words, Completion) else completion(words, request.key) for request, words in spoken
        ]

    return answer
