"""Prompts -> candidates -> judgements -> scored groups.

    collector = Collector(engine=engine, renderer=renderer, rollout=plan.rollout, judge=judge, store=store)
    for group in collector.groups(prompts): ...

Prompts go through in chunks of a size that only the plan decides, and everything that is generated goes through the
store: killed and started again, the same call goes on after the last chunk that was stored.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

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
class Collector:
    """Everything needed to turn prompts into scored groups."""

    engine: Engine
    renderer: Renderer
    rollout: Rollout
    judge: PointJudge
    store: RolloutStore
    tell: Tell = lambda num, note: None
    seconds: dict[str, float] = field(default_factory=lambda: {"generate": 0.0, "judge": 0.0})
    """Time spent so far, by part, in this process."""

    def groups(self, prompts: Sequence[Prompt]) -> Iterator[Group]:
        """One group per prompt, in their order."""
        keys = prompt_keys(prompts)
        size = max(1, self._at_once // self.rollout.group_size)
        for start in range(0, len(prompts), size):
            yield from self._chunk(prompts[start : start + size], keys[start : start + size])

    @property
    def _at_once(self) -> int:
        return CHUNK_BATCHES * self.rollout.batch_size

    def _chunk(self, prompts: Sequence[Prompt], keys: Sequence[str]) -> Iterator[Group]:
        asked = [request for prompt, key in zip(prompts, keys, strict=True) for request in self.requests(prompt, key)]
        candidates = self._answer(asked, "generate")
        num = self.rollout.group_size
        groups = [candidates[start : start + num] for start in range(0, len(candidates), num)]
        questions = [
            [self.judge.requests(prompt, candidate) for candidate in group]
            for prompt, group in zip(prompts, groups, strict=True)
        ]
        flat = [request for group in questions for requests in group for request in requests]
        replies = iter(self._answer(flat, "judge"))
        # An answer that is not judged (empty, failed) counts as done, or the progress would never arrive.
        self.tell(len(candidates) * self.judge.config.votes - len(flat), "judgements")
        for prompt, key, group, asked_judge in zip(prompts, keys, groups, questions, strict=True):
            votes = [[next(replies) for _ in requests] for requests in asked_judge]
            scores = [self.judge.score(c, said) for c, said in zip(group, votes, strict=True)]
            yield Group(prompt=prompt, completions=tuple(group), scores=tuple(scores), columns={"key": key})

    def requests(self, prompt: Prompt, key: str) -> list[Request]:
        """The group's candidates as requests."""
        config, sampling = self.rollout, sampling_of(self.rollout)
        ids = self.renderer.prompt(prompt.messages, prompt.tools, origin=prompt.origin)
        return [
            Request(key=f"{key}#{index}", prompt_ids=ids, sampling=sampling, seed=config.seed)
            for index in range(config.group_size)
        ]

    def _answer(self, requests: Sequence[Request], part: str) -> list[Completion]:
        completions: list[Completion] = []
        for start in range(0, len(requests), self._at_once):
            begun, waiting = time.perf_counter(), self.store.num_waiting
            chunk = self.store.answer(self.engine, requests[start : start + self._at_once])
            self.seconds[part] += time.perf_counter() - begun
            self.tell(
                len(chunk) - (waiting - self.store.num_waiting), "answers" if part == "generate" else "judgements"
            )
            completions += chunk
        return completions


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


def prompt_keys(prompts: Sequence[Prompt]) -> list[str]:
    """A name for each prompt, made of its content: it survives a renamed file and another order of rows.

    A prompt that occurs again gets a number, so that its samples are other ones.
    """
    seen: Counter[str] = Counter()
    keys = []
    for prompt in prompts:
        content = json.dumps([[_plain(m) for m in prompt.messages], [dict(t) for t in prompt.tools]], sort_keys=True)
        key = sha256(content.encode()).hexdigest()[:16]
        keys.append(f"{key}.{seen[key]}" if seen[key] else key)
        seen[key] += 1
    return keys


def _plain(message: Message) -> list[object]:
    content: object = message.content
    if not isinstance(content, str):
        content = [[part.type, part.value] for part in message.content if isinstance(part, Part)]
    return [message.role, content, [dict(call) for call in message.tool_calls]]
