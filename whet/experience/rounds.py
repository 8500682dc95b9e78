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
from whet.errors import RunError
from whet.experience.collect import prompt_keys, sampling_of
from whet.rewards.reward import Reward
from whet.rewards.state import RewardState, load_state, save_state
from whet.rollout.engine import Engine, answers
from whet.runs.files import read_jsonl, write_jsonl
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion, Group, Request, Score

MOST_TRIES = 4
"""Times a round asks for other prompts in place of those whose rewards are all equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one generation gave."""

    number: int
    groups: tuple[Group, ...]
    """In the order of their prompts; `columns["place"]` is the prompt's place in the data set."""
    left_out: tuple[Group, ...] = ()
    """Asked for, and not trained on, because the rewards of a prompt were all equal."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """`generate` and `score`."""
    reward_state: RewardState = field(default_factory=dict)
    """What the reward had seen when the round was scored, as far as it normalises."""


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
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """`replace_equal` draws other prompts in place of those without a signal (DAPO's dynamic sampling), each rank
        from a share of its own. `folder` belongs to this rank alone."""
        self._engine, self._renderer, self._reward, self._rollout = engine, renderer, reward, rollout
        self._prompts, self._keys, self._folder = prompts, prompt_keys(prompts), folder
        self._replace_equal, self._rank, self._world = replace_equal, rank, world

    def make(self, number: int, places: Sequence[int], sync: Callable[[], None]) -> Round:
        """Round `number` over the prompts at these places; `sync` brings the engine's weights up to date first."""
        path = self._path(number)
        if path.is_file():
            made = self._checked(_read(path, self._prompts), path)
            load_state(self._reward, made.reward_state)
            return made
        sync()
        if self._path(number - 1).is_file():  # a run that goes on from a checkpoint may not have read that round
            load_state(self._reward, _last_line(self._path(number - 1))["reward_state"])
        made = self._draw(number, places)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, _lines(made))
        return made

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.jsonl"

    def _checked(self, made: Round, path: Path) -> Round:
        """Raises RunError where the file holds the rollouts of other prompts."""
        for group in (*made.groups, *made.left_out):
            key = f"{made.number}/{self._keys[_place(group)]}#"
            if not all(completion.key.startswith(key) for completion in group.completions):
                raise RunError(
                    "holds the rollouts of other prompts", file=str(path),
                    fix="pass --fresh to move what an earlier run made to archive/",
                )  # fmt: skip
        return made

    def _draw(self, number: int, places: Sequence[int]) -> Round:
        seconds = {"generate": 0.0, "score": 0.0}
        kept: list[Group] = []
        spare: list[Group] = []
        asked, tries = list(places), 0
        while asked:
            for group in self._groups(number, asked, seconds):
                (kept if _differ(group) or not self._replace_equal else spare).append(group)
            tries += 1
            missing, asked = len(places) - len(kept), []
            if missing > 0 and tries < MOST_TRIES and self._replace_equal:
                asked = self._others(number, tries, missing, {_place(group) for group in [*kept, *spare]})
        # A round is never short: prompts without a signal fill it, and count for the normaliser as they do elsewhere.
        missing = max(0, len(places) - len(kept))
        return Round(
            number=number, groups=(*kept, *spare[:missing])[: len(places)], left_out=tuple(spare[missing:]),
            seconds=seconds, reward_state=save_state(self._reward),
        )  # fmt: skip

    def _others(self, number: int, tries: int, num: int, seen: set[int]) -> list[int]:
        """Prompts of this rank's share that the round has not asked for, drawn by (seed, round, try)."""
        share = range(self._rank, len(self._prompts), self._world)
        rest = [place for place in share if place not in seen]
        draw = np.random.Generator(np.random.PCG64([self._rollout.seed, number, tries]))
        return [rest[int(i)] for i in draw.permutation(len(rest))[:num]]

    def _groups(self, number: int, places: Sequence[int], seconds: dict[str, float]) -> list[Group]:
        begun = time.perf_counter()
        requests = [request for place in places for request in self._requests(number, place)]
        completions = answers(self._engine, requests)
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
        asked = self._renderer.ask(prompt.messages, prompt.tools, origin=prompt.origin)
        for index in range(config.group_size):
            yield asked.request(f"{number}/{self._keys[place]}#{index}", sampling_of(config), config.seed)


def _place(group: Group) -> int:
    place: int = group.columns["place"]
    return place


def _differ(group: Group) -> bool:
    """Whether the group's rewards say which of its completions are better."""
    return len({score.value for score in group.scores if score.value is not None}) > 1


def _lines(made: Round) -> Iterator[dict[str, Any]]:
    for trained, groups in ((True, made.groups), (False, made.left_out)):
        for group in groups:
            yield from (
                _row(group, completion, score) | {"trained": trained}
                for completion, score in zip(group.completions, group.scores, strict=True)
            )
    yield {"round": made.number, "seconds": dict(made.seconds), "reward_state": made.reward_state}


def _row(group: Group, completion: Completion, score: Score) -> dict[str, Any]:
    return {
        "place": _place(group),
        "key": completion.key,
        "prompt": [{"role": message.role, "text": message.shown} for message in group.prompt.messages],
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "reward": score.value,
        "parts": dict(score.parts),
        "votes": list(score.votes),
        "reward_error": score.error,
        "error": completion.error,
        "policy_version": completion.policy_version,
        "ids": list(completion.ids),
        "logprobs": list(completion.logprobs),
        "policy_logprobs": list(completion.policy_logprobs),
    }


def _last_line(path: Path) -> dict[str, Any]:
    """The line of the round itself."""
    *_, last = read_jsonl(path)
    return last


def _read(path: Path, prompts: Sequence[Prompt]) -> Round:
    *rows, last = read_jsonl(path)
    groups: dict[tuple[bool, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["trained"], row["place"]), []).append(row)
    of: dict[bool, list[Group]] = {True: [], False: []}
    for (trained, place), mine in groups.items():
        of[trained].append(
            Group(
                prompt=prompts[place],
                completions=tuple(_completion(row) for row in mine),
                scores=tuple(_score(row) for row in mine),
                columns={"place": place},
            )
        )
    return Round(
        number=last["round"], groups=tuple(of[True]), left_out=tuple(of[False]), seconds=last["seconds"],
        reward_state=last["reward_state"],
    )  # fmt: skip


def _score(row: dict[str, Any]) -> Score:
    return Score(value=row["reward"], parts=row["parts"], votes=tuple(row["votes"]), error=row["reward_error"])


def _completion(row: dict[str, Any]) -> Completion:
    return Completion(
        key=row["key"], ids=tuple(row["ids"]), text=row["text"], logprobs=tuple(row["logprobs"]),
        policy_logprobs=tuple(row["policy_logprobs"]), finish_reason=row["finish_reason"],
        policy_version=row["policy_version"], error=row["error"],
    )  # fmt: skip
