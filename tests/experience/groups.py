"""Groups by hand, and an engine that counts what it is asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from whet.schema.records import Message, Prompt
from whet.schema.rollouts import Completion, Group, Request, Score


def question(text: str = "Name a city.", **columns: object) -> Prompt:
    return Prompt(messages=(Message("user", text),), columns=columns)


def group(*answers: tuple[str, float | None], prompt: Prompt | None = None) -> Group:
    """A group from (text, score); an answer has as many tokens as characters."""
    completions = [
        Completion(key=f"k#{i}", ids=(7,) * len(text), text=text, logprobs=(), finish_reason="stop")
        for i, (text, _) in enumerate(answers)
    ]
    scores = [
        Score(
            value=value,
            parts={} if value is None else {"vote_0": value},
            votes=("",) if value is None else (f"Score: {value:g}",),
        )
        for _, value in answers
    ]
    return Group(
        prompt=prompt or question(), completions=tuple(completions), scores=tuple(scores), columns={"key": "k"}
    )


class FakeEngine:
    """Answers from the key alone and remembers the keys; judges by the length of the key's digits."""

    def __init__(self, *, batched: bool = True) -> None:
        self.asked: list[str] = []
        self.batched = batched

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            self.asked.append(request.key)
            number = sum(map(ord, request.key)) % 6
            text = f"Score: {number}" if "/judge" in request.key else f"answer {number} é\u2028{request.key}"
            yield Completion(
                key=request.key, ids=(number,), text=text, logprobs=(-0.5,), finish_reason="stop", policy_version=0
            )

    def sync(self, version: int) -> None:
        pass

    def close(self) -> None:
        pass
