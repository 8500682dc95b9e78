"""Rounds of online RL: prompts -> groups of completions -> rewards, kept on disk as they were.

A round is a function of the weights it was drawn with, and of the round's number; a killed run reads the rounds that
were made after its last checkpoint instead of drawing them anew, so a reward that cost money or is not quite
repeatable is asked for once.

    rounds/000012.jsonl    a line a completion (prompt, ids, log-probs, text, reward, parts), then one of the round
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from whet.config.rollout import Rollout
from whet.data.render import Renderer
from whet.experience.collect import prompt_keys
from whet.rewards.reward import Reward
from whet.rollout.engine import Engine
from whet.runs.files import read_jsonl, write_jsonl
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion, Group, Request, Sampling, Score

MOST_TRIES = 4
"""Times a round asks for other prompts in place of those whose rewards are all equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one generation gave."""

    number: int
    groups: tuple[Group, ...]
    """In the order of their prompts; `columns["place"]` is the prompt's place in the data set."""
    replaced: int = 0
    """Prompts that were left out because their rewards were all equal."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """`generate` and `score`."""


class Rounds:
    """Makes rounds, or reads them where they have been made."""

    def __init__(
        self,
        *,
        engine: Engine,
        renderer: Renderer,
        reward: Reward,
        rollout: Rollout,
        prompts: Sequence[Prompt],
        folder: Path,
        replace_equal: bool = False,
    ) -> None:
        """`replace_equal` draws other prompts in place of those without a signal (DAPO's dynamic sampling)."""
        self._engine, self._renderer, self._reward, self._rollout = engine, renderer, reward, rollout
        self._prompts, self._keys, self._folder = prompts, prompt_keys(prompts), folder
        self._replace_equal = replace_equal

    def make(self, number: int, places: Sequence[int], sync: Callable[[], None]) -> Round:
        """Round `number` over the prompts at these places; `sync` brings the engine's weights up to date first."""
        path = self._folder / f"{number:06d}.jsonl"
        if path.is_file():
            return _read(path, self._prompts)
        sync()
        made = self._draw(number, places)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, _lines(made))
        return made

    def _draw(self, number: int, places: Sequence[int]) -> Round:
        seconds = {"generate": 0.0, "score": 0.0}
        kept: list[Group] = []
        spare: list[Group] = []
        asked, replaced = list(places), 0
        for attempt in range(MOST_TRIES if self._replace_equal else 1):
            groups = self._groups(number, asked, seconds)
            useful = [group for group in groups if not self._replace_equal or _differ(group)]
            spare += [group for group in groups if not any(group is other for other in useful)]
            kept += useful
            if len(kept) >= len(places):
                break
            replaced = len(spare)
            asked = self._others(number, attempt, len(places) - len(kept), {_place(group) for group in [*kept, *spare]})
            if not asked:
                break
        # A round is never short: prompts without a signal fill it, and count for the normaliser as they do elsewhere.
        kept += spare[: max(0, len(places) - len(kept))]
        return Round(number=number, groups=tuple(kept[: len(places)]), replaced=replaced, seconds=seconds)

    def _others(self, number: int, attempt: int, num: int, seen: set[int]) -> list[int]:
        """Prompts that this round has not asked for, drawn by (seed, round, attempt)."""
        rest = [place for place in range(len(self._prompts)) if place not in seen]
        draw = np.random.Generator(np.random.PCG64([self._rollout.seed, number, attempt]))
        return [rest[int(i)] for i in draw.permutation(len(rest))[:num]]

    def _groups(self, number: int, places: Sequence[int], seconds: dict[str, float]) -> list[Group]:
        begun = time.perf_counter()
        requests = [request for place in places for request in self._requests(number, place)]
        completions = list(self._engine.generate(requests))
        drawn = time.perf_counter()
        size = self._rollout.group_size
        asked = [self._prompts[place] for place in places for _ in range(size)]
        scores = self._reward.score(asked, completions)
        seconds["generate"] += drawn - begun
        seconds["score"] += time.perf_counter() - drawn
        return [
            Group(
                prompt=self._prompts[place],
                completions=tuple(completions[start : start + size]),
                scores=tuple(scores[start : start + size]),
                columns={"place": place},
            )
            for place, start in zip(places, range(0, len(completions), size), strict=True)
        ]

    def _requests(self, number: int, place: int) -> Iterator[Request]:
        config, prompt = self._rollout, self._prompts[place]
        ids = self._renderer.prompt(prompt.messages, prompt.tools, origin=prompt.origin)
        for index in range(config.group_size):
            yield Request(
                key=f"{number}/{self._keys[place]}#{index}", prompt_ids=ids, sampling=sampling_of(config),
                seed=config.seed,
            )  # fmt: skip


def sampling_of(config: Rollout) -> Sampling:
    return Sampling(
        max_new_tokens=config.max_new_tokens,
        min_new_tokens=config.min_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
    )


def _place(group: Group) -> int:
    place: int = group.columns["place"]
    return place


def _differ(group: Group) -> bool:
    """Whether the group's rewards say which of its completions are better."""
    return len({score.value for score in group.scores if score.value is not None}) > 1


def _lines(made: Round) -> Iterator[dict[str, Any]]:
    for group in made.groups:
        for completion, score in zip(group.completions, group.scores, strict=True):
            yield {
                "place": _place(group),
                "key": completion.key,
                "prompt": [{"role": message.role, "text": message.text} for message in group.prompt.messages],
                "text": completion.text,
                "finish_reason": completion.finish_reason,
                "reward": score.value,
                "parts": dict(score.parts),
                "reward_error": score.error,
                "error": completion.error,
                "policy_version": completion.policy_version,
                "ids": list(completion.ids),
                "logprobs": list(completion.logprobs),
                "policy_logprobs": list(completion.policy_logprobs),
            }
    yield {"round": made.number, "replaced": made.replaced, "seconds": dict(made.seconds)}


def _read(path: Path, prompts: Sequence[Prompt]) -> Round:
    *rows, last = read_jsonl(path)
    by_place: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_place.setdefault(row["place"], []).append(row)
    groups = tuple(
        Group(
            prompt=prompts[place],
            completions=tuple(_completion(row) for row in mine),
            scores=tuple(Score(value=row["reward"], parts=row["parts"], error=row["reward_error"]) for row in mine),
            columns={"place": place},
        )
        for place, mine in by_place.items()
    )
    return Round(number=last["round"], groups=groups, replaced=last["replaced"], seconds=last["seconds"])


def _completion(row: dict[str, Any]) -> Completion:
    return Completion(
        key=row["key"], ids=tuple(row["ids"]), text=row["text"], logprobs=tuple(row["logprobs"]),
        policy_logprobs=tuple(row["policy_logprobs"]), finish_reason=row["finish_reason"],
        policy_version=row["policy_version"], error=row["error"],
    )  # fmt: skip
