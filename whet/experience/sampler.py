"""Prompts -> several answers each -> scores -> `groups.jsonl`, as a stream: memory holds a window of prompts at a time.

    Sampler(engine=engine, renderer=renderer, rollout=plan.rollout, reward=reward, store=store, file=file).run(prompts)

Completions go through the store as they come, scored groups into the file window by window. Killed and started again,
the same call asks for nothing that was answered and scores nothing that was scored.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from whet.config.rollout import Rollout
from whet.data.render import Renderer
from whet.experience.asking import replies_to
from whet.experience.collect import at_once, sampling_of
from whet.experience.sampled import GroupFile, Sampled, answer_of
from whet.experience.store import RolloutStore
from whet.rewards.reward import Reward
from whet.rollout.engine import Engine
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion, Request

T = TypeVar("T")
Question = tuple[Prompt, str]
"""A prompt as it is asked, and its name."""
Answered = tuple[Question, list[Completion]]
AHEAD = 64
"""Groups of a server's answers that wait for their scores; the server goes on answering meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """Everything needed to turn prompts into scored groups on disk."""

    engine: Engine
    renderer: Renderer
    rollout: Rollout
    reward: Reward
    store: RolloutStore
    file: GroupFile
    earlier: Callable[[str], Sampled | None] = lambda key: None
    """The scored group of a prompt that another division of the work has left, by the prompt's name."""
    scored: Callable[[], None] = lambda: None
    """Called when the scores of a window are on disk."""
    tell: Callable[[int], None] = lambda num: None
    """Told how many answers came since the last time."""
    seconds: dict[str, float] = field(default_factory=lambda: {"score": 0.0})
    """Time spent on scores so far, in this process."""

    def run(self, questions: Iterable[Question]) -> None:
        """Answer, score and write every prompt that is not in the file yet."""
        answered = self._answers(questions)
        groups: Iterator[Answered] = answered if self.engine.batched else ahead(answered, AHEAD)
        start = 0
        while window := list(islice(groups, self._window)):
            known = max(0, self.file.num - start)
            start += len(window)
            if known < len(window):  # a window is scored as a whole: the same answers together, the same scores
                self.file.add(self._score(window)[known:])
                self.scored()

    @property
    def _window(self) -> int:
        """Prompts scored together; of a batched engine also those asked together."""
        return max(1, at_once(self.rollout.batch_size) // self.rollout.group_size)

    def _answers(self, questions: Iterable[Question]) -> Generator[Answered, None, None]:
        sampling, size = sampling_of(self.rollout), self.rollout.group_size

        def requests(question: Question) -> list[Request]:
            prompt, key = question
            asked = self.renderer.ask(prompt.messages, prompt.tools, origin=prompt.origin)
            return [asked.request(f"{key}#{index}", sampling, self.rollout.seed) for index in range(size)]

        yield from replies_to(
            questions, requests, store=self.store, engine=self.engine, chunk=self._window * size, tell=self.tell
        )

    def _score(self, window: list[Answered]) -> list[Sampled]:
        known = [self.earlier(key) for (_, key), _ in window]
        fresh = [answered for answered, group in zip(window, known, strict=True) if group is None]
        begun = time.perf_counter()
        prompts = [prompt for (prompt, _), completions in fresh for _ in completions]
        scores = iter(self.reward.score(prompts, [one for _, completions in fresh for one in completions]))
        self.seconds["score"] += time.perf_counter() - begun
        made = iter(
            Sampled(key=key, prompt=prompt, answers=tuple(answer_of(one, next(scores)) for one in completions))
            for (prompt, key), completions in fresh
        )
        return [next(made) if group is None else group for group in known]


def ahead(items: Generator[T, None, None], most: int) -> Iterator[T]:
    """The items, made by a thread of their own that is at most so many ahead, and closes them at the end."""
    ready: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(maxsize=most)
    stopped = threading.Event()

    def put(thing: tuple[T] | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put(thing, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        try:
            with closing(items):
                for item in items:
                    put((item,))
                    if stopped.is_set():
                        return
            put(None)
        except BaseException as error:  # handed on to whoever takes the items
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (thing := ready.get()) is not None:
            if isinstance(thing, BaseException):
                raise thing
            yield thing[0]
    finally:
        stopped.set()
        thread.join(timeout=5)
