"""Streams of things that each have questions: every thing comes out with the replies to its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from whet.experience.store import RolloutStore
from whet.rewards.judge import AskedJudge, Judge, Question
from whet.rollout.engine import Engine
from whet.schema.rollouts import Completion, Group, Request

T = TypeVar("T")


def replies_to(
    items: Iterable[T], requests: Callable[[T], Sequence[Request]], *, store: RolloutStore, engine: Engine, chunk: int,
    tell: Callable[[int], None],
) -> Iterator[tuple[T, list[Completion]]]:  # fmt: skip
    """Each item with the completions of its requests, in the order of the items.

    Items are pulled as the engine takes requests: no more of them wait than it has begun.
    """
    waiting: deque[tuple[T, int]] = deque()

    def asked() -> Iterator[Request]:
        for item in items:
            mine = requests(item)
            waiting.append((item, len(mine)))
            yield from mine

    said: list[Completion] = []
    for reply in store.stream(engine, asked(), chunk=chunk, tell=tell):
        while not waiting[0][1]:
            yield waiting.popleft()[0], []
        said.append(reply)
        if len(said) == waiting[0][1]:
            yield waiting.popleft()[0], said
            said = []
    for item, _ in waiting:
        yield item, []


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeStream:
    """A judge with an engine to speak through and files to remember in."""

    judge: Judge
    engine: Engine
    judgements: RolloutStore | None
    """None where nobody is asked."""
    probabilities: RolloutStore | None
    """Of scores, where the judge weighs them."""
    chunk: int
    """Requests asked together."""

    @property
    def num_stored(self) -> int:
        """Replies that an earlier process left."""
        return sum(store.num_stored for store in (self.judgements, self.probabilities) if store is not None)

    @property
    def seconds(self) -> float:
        """Time waited for the engine, in this process."""
        return sum(store.seconds for store in (self.judgements, self.probabilities) if store is not None)

    def judged(self, groups: Iterable[Group], tell: Callable[[int], None] = lambda done: None) -> Iterator[Group]:
        """The groups with scores, in their order. `tell` hears how many of the judge's requests are done, or turn out
        not to be needed."""
        if isinstance(self.judge, AskedJudge):
            return self._asked(self.judge, groups, tell)
        return self._unasked(groups)

    def _asked(self, judge: AskedJudge, groups: Iterable[Group], tell: Callable[[int], None]) -> Iterator[Group]:
        def ask(both: tuple[Group, list[Question]]) -> list[Request]:
            group, questions = both
            # What is not asked (an answer is empty, failed, or like another) counts as done.
            tell(judge.num_questions(len(group.completions)) - len(questions))
            return [question.request for question in questions]

        def read() -> Iterator[tuple[Group, list[Question]]]:
            both = ((group, judge.questions(group)) for group in groups)
            for (group, questions), replies in self._replies(both, ask, self.judgements, tell):
                yield judge.judged(group, questions, replies), questions

        def places(both: tuple[Group, list[Question]]) -> list[Request]:
            group, questions = both
            requests = judge.places(group, questions)
            tell(judge.num_questions(len(group.completions)) - len(requests))
            return requests

        if judge.expectation is None:
            yield from (group for group, _ in read())
        else:
            for (group, _), said in self._replies(read(), places, self.probabilities, tell):
                yield judge.weighed(group, said)

    def _replies(
        self, items: Iterable[T], requests: Callable[[T], Sequence[Request]], store: RolloutStore | None,
        tell: Callable[[int], None],
    ) -> Iterator[tuple[T, list[Completion]]]:  # fmt: skip
        assert store is not None, "a judge that is asked has files"
        return replies_to(items, requests, store=store, engine=self.engine, chunk=self.chunk, tell=tell)

    def _unasked(self, groups: Iterable[Group]) -> Iterator[Group]:
        """As many groups at a time as have about `chunk` completions."""
        rest = iter(groups)
        for first in rest:
            size = max(1, self.chunk // len(first.completions))
            yield from self.judge.judge([first, *islice(rest, size - 1)], lambda requests: [])


def judge_stream(judge: Judge, engine: Engine, folder: Path, *, chunk: int) -> JudgeStream:
    """With the files it needs in the folder: judgements.jsonl, and probabilities.jsonl where scores are weighed."""
    asked = isinstance(judge, AskedJudge)
    weighs = isinstance(judge, AskedJudge) and judge.expectation is not None
    return JudgeStream(
        judge=judge,
        engine=engine,
        judgements=RolloutStore(folder / "judgements.jsonl") if asked else None,
        probabilities=RolloutStore(folder / "probabilities.jsonl") if weighs else None,
        chunk=chunk,
    )
