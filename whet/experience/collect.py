"""Prompts -> candidates -> judgements -> scored groups.

    collector = Collector(engine=engine, judge_engine=engine, renderer=renderer, rollout=plan.rollout, judge=judge,
                          store=store, judgements=judgements)
    for group in collector.groups(prompts): ...

Everything that is generated goes through the stores, in chunks of a size that only the plan decides where the engine
cares: killed and started again, the same call goes on where they end.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice

from whet.config.rollout import Rollout
from whet.data.render import Renderer
from whet.experience.store import RolloutStore
from whet.rewards.judge import PointJudge
from whet.rollout.engine import Engine
from whet.schema.records import Message, Part, Prompt
from whet.schema.rollouts import Completion, Group, Request, Sampling

CHUNK_BATCHES = 4
"""Batches generated between two writes to disk: more pad less, fewer lose less to a kill."""

Tell = Callable[[int, str], None]
"""Told how many answers or judgements were made since the last time, and which of the two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The answers to one prompt, and what the judge is asked about each."""

    prompt: Prompt
    key: str
    completions: tuple[Completion, ...]
    questions: tuple[tuple[Request, ...], ...]

    @property
    def num_questions(self) -> int:
        return sum(map(len, self.questions))


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Everything needed to turn prompts into scored groups.

    Both streams are pulled by whoever takes the groups: a judge asks as soon as there are answers to judge, and no more
    prompts are read than the engines have begun.
    """

    engine: Engine
    judge_engine: Engine
    renderer: Renderer
    rollout: Rollout
    judge: PointJudge
    store: RolloutStore
    judgements: RolloutStore
    tell: Tell = lambda num, note: None

    @property
    def num_stored(self) -> int:
        """Answers and judgements that an earlier process left."""
        return self.store.num_stored + self.judgements.num_stored

    @property
    def seconds(self) -> Mapping[str, float]:
        """Time spent so far, by part, in this process."""
        return {"generate": self.store.seconds, "judge": self.judgements.seconds}

    def groups(self, prompts: Iterable[Prompt]) -> Iterator[Group]:
        """One group per prompt, in their order."""
        waiting: deque[Candidates] = deque()

        def questions() -> Iterator[Request]:
            for group in self._candidates(prompts):
                waiting.append(group)
                # An answer that is not judged (empty, failed) counts as done, or the progress would never arrive.
                self.tell(len(group.completions) * self.judge.config.votes - group.num_questions, "judgements")
                yield from (request for requests in group.questions for request in requests)

        said: list[Completion] = []
        for reply in self.judgements.stream(
            self.judge_engine, questions(), chunk=self._at_once, tell=lambda made: self.tell(made, "judgements")
        ):
            while not waiting[0].num_questions:
                yield self._group(waiting.popleft(), [])
            said.append(reply)
            if len(said) == waiting[0].num_questions:
                yield self._group(waiting.popleft(), said)
                said = []
        for group in waiting:
            yield self._group(group, [])

    @property
    def _at_once(self) -> int:
        return CHUNK_BATCHES * self.rollout.batch_size

    def _candidates(self, prompts: Iterable[Prompt]) -> Iterator[Candidates]:
        asked: deque[tuple[Prompt, str]] = deque()
        num = self.rollout.group_size

        def requests() -> Iterator[Request]:
            for prompt, key in keyed(prompts):
                asked.append((prompt, key))
                yield from self.requests(prompt, key)

        completions = self.store.stream(
            self.engine, requests(), chunk=max(1, self._at_once // num) * num,
            tell=lambda made: self.tell(made, "answers"),
        )  # fmt: skip
        while group := tuple(islice(completions, num)):
            prompt, key = asked.popleft()
            yield Candidates(
                prompt=prompt, key=key, completions=group,
                questions=tuple(tuple(self.judge.requests(prompt, candidate)) for candidate in group),
            )  # fmt: skip

    def _group(self, found: Candidates, said: Sequence[Completion]) -> Group:
        replies = iter(said)
        votes = [[next(replies) for _ in requests] for requests in found.questions]
        scores = [self.judge.score(c, reply) for c, reply in zip(found.completions, votes, strict=True)]
        return Group(
            prompt=found.prompt, completions=found.completions, scores=tuple(scores), columns={"key": found.key}
        )

    def requests(self, prompt: Prompt, key: str) -> list[Request]:
        """The group's candidates as requests."""
        asked = self.renderer.ask(prompt.messages, prompt.tools, origin=prompt.origin)
        return [
            asked.request(f"{key}#{index}", sampling_of(self.rollout), self.rollout.seed)
            for index in range(self.rollout.group_size)
        ]


def sampling_of(config: Rollout) -> Sampling:
    return Sampling(
        max_new_tokens=config.max_new_tokens,
        min_new_tokens=config.min_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        stop=config.stop,
    )


def keyed(prompts: Iterable[Prompt]) -> Iterator[tuple[Prompt, str]]:
    """Prompts with a name for each, made of its content: it survives a renamed file and another order of rows.

    A prompt that occurs again gets a number, so that its samples are other ones.
    """
    seen: Counter[str] = Counter()
    for prompt in prompts:
        content = json.dumps([[_plain(m) for m in prompt.messages], [dict(t) for t in prompt.tools]], sort_keys=True)
        key = sha256(content.encode()).hexdigest()[:16]
        yield prompt, f"{key}.{seen[key]}" if seen[key] else key
        seen[key] += 1


def prompt_keys(prompts: Iterable[Prompt]) -> list[str]:
    """The names of `keyed`."""
    return [key for _, key in keyed(prompts)]


def _plain(message: Message) -> list[object]:
    content: object = message.content
    if not isinstance(content, str):
        content = [[part.type, part.value] for part in message.content if isinstance(part, Part)]
    return [message.role, content, [dict(call) for call in message.tool_calls]]
