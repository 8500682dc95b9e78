"""Prompts -> candidates -> judgements -> scored groups.

    judging = judge_stream(judge, engine, folder, chunk=at_once(rollout.batch_size))
    collector = Collector(engine=engine, renderer=renderer, rollout=plan.rollout, store=store, judging=judging)
    for group in collector.groups(prompts): ...

Everything that is generated goes through the stores, in chunks of a size that only the plan decides where the engine
cares: killed and started again, the same call goes on where they end.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256

from whet.config.rollout import Rollout
from whet.data.picture_files import identity
from whet.data.render import Renderer
from whet.experience.asking import JudgeStream, replies_to
from whet.experience.store import RolloutStore
from whet.rollout.engine import Engine
from whet.schema.records import Message, Part, Prompt
from whet.schema.rollouts import Group, Request, Sampling

CHUNK_BATCHES = 4
"""Batches generated between two writes to disk: more pad less, fewer lose less to a kill."""

Tell = Callable[[int, str], None]
"""Told how many answers or judgements were made since the last time, and which of the two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Everything needed to turn prompts into scored groups.

    Both streams are pulled by whoever takes the groups: a judge asks as soon as there are answers to judge, and no more
    prompts are read than the engines have begun.
    """

    engine: Engine
    renderer: Renderer
    rollout: Rollout
    store: RolloutStore
    judging: JudgeStream
    tell: Tell = lambda num, note: None

    @property
    def num_stored(self) -> int:
        """Answers and judgements that an earlier process left."""
        return self.store.num_stored + self.judging.num_stored

    @property
    def seconds(self) -> Mapping[str, float]:
        """Time spent so far, by part, in this process."""
        return {"generate": self.store.seconds, "judge": self.judging.seconds}

    def groups(self, prompts: Iterable[Prompt]) -> Iterator[Group]:
        """One group per prompt, in their order."""
        return self.groups_of(keyed(prompts))

    def groups_of(self, named: Iterable[tuple[Prompt, str]]) -> Iterator[Group]:
        """The same for prompts that have their names: a share of all prompts."""
        return self.judging.judged(self._unscored(named), lambda done: self.tell(done, "judgements"))

    def _unscored(self, named: Iterable[tuple[Prompt, str]]) -> Iterator[Group]:
        num = self.rollout.group_size
        for (prompt, key), completions in replies_to(
            named, lambda both: self.requests(*both), store=self.store, engine=self.engine,
            chunk=max(1, at_once(self.rollout.batch_size) // num) * num, tell=lambda made: self.tell(made, "answers"),
        ):  # fmt: skip
            yield Group(prompt=prompt, completions=tuple(completions), scores=(), columns={"key": key})

    def requests(self, prompt: Prompt, key: str) -> list[Request]:
        """The group's candidates as requests."""
        asked = self.renderer.ask(prompt.messages, prompt.tools, origin=prompt.origin)
        return [
            asked.request(f"{key}#{index}", sampling_of(self.rollout), self.rollout.seed)
            for index in range(self.rollout.group_size)
        ]


def at_once(batch_size: int) -> int:
    """Requests asked between two writes to disk."""
    return CHUNK_BATCHES * batch_size


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


def _said(part: Part) -> str:
    """Words, or the hash of a picture: the same one elsewhere is the same, an edited one another."""
    return identity(part.value) if part.type == "image" else part.value


def _plain(message: Message) -> list[object]:
    content: object = message.content
    if isinstance(message.content, tuple):
        content = [[part.type, _said(part)] for part in message.content]
    return [message.role, content, [dict(call) for call in message.tool_calls]]
