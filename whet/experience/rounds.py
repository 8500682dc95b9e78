"""Rounds of online RL: prompts -> groups of completions -> rewards, kept on disk as they were.

A round is a function of the weights it was drawn with, and of the round's number; a killed run reads the rounds that
were made after its last checkpoint instead of drawing them anew, so a reward that cost money or is not quite
repeatable is asked for once.

    rounds/000012.jsonl              a line a completion (prompt, ids, log-probs, text, reward), then one of the round
    rounds/000012.part-1-of-2.jsonl  what rank 1 of 2 has drawn of a round that is not whole yet

A round without a single reward ends the run, since nothing could be learned. Its completions stay in the part, and the
same command asks for their rewards alone.

Of several ranks each draws every n-th prompt of a round, and all get the whole round. What is on disk does not depend
on their number: another number of them goes on with whole rounds as they are, and asks for nothing that stands in a
part.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from whet.config.rollout import Rollout
from whet.data.render import Renderer
from whet.errors import RunError, UserError
from whet.experience.collect import prompt_keys, sampling_of
from whet.experience.group_rewards import (
    UNSCORED,
    differ,
    first_complaint,
    has_reward,
    is_answered,
    is_scored,
    unscored,
    why_unscored,
)
from whet.experience.round_file import Round, group_rows, groups_of, last_line, place_of, read_round, round_lines
from whet.ranks.group import ALONE, Ranks
from whet.ranks.pulse import beat
from whet.rewards.reward import Reward
from whet.rewards.state import RewardState, load_state, save_state
from whet.rollout.engine import Engine
from whet.runs.files import read_jsonl, write_jsonl
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion, Group, Request, Score

MOST_TRIES = 4
"""Times a round asks for other prompts in place of those whose rewards are all equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """This rank's part of a round, before it is put together."""

    groups: tuple[Group, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


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
        ranks: Ranks = ALONE,
    ) -> None:
        """`replace_equal` draws other prompts in place of those without a signal (DAPO's dynamic sampling)."""
        self._engine, self._renderer, self._reward, self._rollout = engine, renderer, reward, rollout
        self._prompts, self._keys, self._folder = prompts, prompt_keys(prompts), folder
        self._replace_equal, self._ranks = replace_equal, ranks
        self._scored_together = bool(save_state(reward))
        """What normalises by all it has seen must see all completions, in one order: rank 0 scores the round."""

    def make(self, number: int, places: Sequence[int], sync: Callable[[], None]) -> Round:
        """Round `number` over the prompts at these places; `sync` brings the engine's weights up to date first."""
        if self._is_made(number):
            return self._read(number)
        sync()
        return self.finish(number, places, self.begin(number, places), lambda: None)

    def begin(self, number: int, places: Sequence[int]) -> Share:
        """Draw this rank's part of the round, unless it is there. It is on disk as soon as it is drawn, and again with
        its scores.

        Says nothing to other ranks, so that it may run in a thread beside the training.
        """
        if self._path(number).is_file():
            return Share()
        seconds = {"generate": 0.0, "score": 0.0}
        known = self._parts(number)
        mine = self._ranks.share(places)
        drawn = self._drawn(number, [place for place in mine if place not in known], seconds, known.values())
        by_place = known | {place_of(group): group for group in drawn}
        share = Share(groups=tuple(by_place[place] for place in mine), seconds=seconds)
        if drawn:
            self._keep_part(number, share.groups)
        if self._scored_together or all(is_scored(group) for group in share.groups):
            return share
        share = replace(share, groups=tuple(self._scored(share.groups, seconds)))
        self._keep_part(number, share.groups)
        return share

    def finish(self, number: int, places: Sequence[int], share: Share, sync: Callable[[], None]) -> Round:
        """The whole round, put together from every rank's part, and kept. On all ranks at once. `sync` brings the
        engine's weights up to date before further prompts are drawn: what drew the part may be there no more.

        Raises RunError where none of its completions has a reward.
        """
        if self._is_made(number):
            return self._read(number)
        made = self._complete(number, places, share, sync)
        self._ranks.on_main(lambda: self._keep(made), "the round, written")
        if self._ranks.is_main and (why := why_unscored((*made.groups, *made.left_out))):
            print(f"round {number}: {why}", file=sys.stderr)
        return made

    def _is_made(self, number: int) -> bool:
        return self._ranks.on_main(self._path(number).is_file, "whether the round is there")

    def _read(self, number: int) -> Round:
        path = self._path(number)
        made = self._checked(read_round(path, self._prompts), path)
        load_state(self._reward, made.reward_state)
        return made

    def _keep(self, made: Round) -> None:
        write_jsonl(self._path(made.number), round_lines(made))
        for part in self._folder.glob(f"{made.number:06d}.part-*.jsonl"):
            part.unlink()

    def _parts(self, number: int) -> dict[int, Group]:
        """Groups that any number of ranks drew of a round that was not finished, by the place of their prompt."""
        found: dict[int, Group] = {}
        for path in sorted(self._folder.glob(f"{number:06d}.part-*.jsonl")):
            groups = groups_of(read_jsonl(path), self._prompts)[True]
            self._check(number, groups, path)
            for group in groups:
                if is_scored(group) or place_of(group) not in found:
                    found[place_of(group)] = group
        return found

    def _keep_part(self, number: int, groups: Sequence[Group]) -> None:
        write_jsonl(self._part(number), (row for group in groups for row in group_rows(group, trained=True)))

    def _part(self, number: int) -> Path:
        """Where this rank's part stands; parts of other numbers of ranks stay beside it until the round is whole."""
        return self._folder / f"{number:06d}.part-{self._ranks.rank}-of-{self._ranks.world}.jsonl"

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.jsonl"

    def _checked(self, made: Round, path: Path) -> Round:
        self._check(made.number, (*made.groups, *made.left_out), path)
        return made

    def _check(self, number: int, groups: Sequence[Group], path: Path) -> None:
        """Raises RunError where the file holds the rollouts of other prompts."""
        for group in groups:
            key = f"{number}/{self._keys[place_of(group)]}#"
            if not all(completion.key.startswith(key) for completion in group.completions):
                raise RunError(
                    "holds the rollouts of other prompts", file=str(path),
                    fix="pass --fresh to move what an earlier run made to archive/",
                )  # fmt: skip

    def _complete(self, number: int, places: Sequence[int], share: Share, sync: Callable[[], None]) -> Round:
        """Every rank's part, scored, and other prompts in place of those without a signal. The same on all ranks."""
        seconds = {"generate": 0.0, "score": 0.0, **share.seconds}
        if self._path(number - 1).is_file():  # a run that goes on from a checkpoint may not have read that round
            load_state(self._reward, last_line(self._path(number - 1))["reward_state"])
        kept: list[Group] = []
        spare: list[Group] = []
        asked, mine, tries = list(places), list(share.groups), 0
        while asked:
            together = self._together(mine, asked, seconds)
            if not tries and not any(has_reward(group) for group in together):
                raise self._without_reward(number, together)
            for group in together:
                (kept if differ(group) or not self._replace_equal else spare).append(group)
            tries += 1
            missing, asked = len(places) - len(kept), []
            if missing > 0 and tries < MOST_TRIES and self._replace_equal:
                asked = self._others(number, tries, missing, {place_of(group) for group in [*kept, *spare]})
                if tries == 1:
                    sync()
                mine = self._drawn(number, self._ranks.share(asked), seconds)
                if not self._scored_together:
                    mine = self._scored(mine, seconds)
        # A round is never short: prompts without a signal fill it, and count for the normaliser as they do elsewhere.
        missing = max(0, len(places) - len(kept))
        return Round(
            number=number, groups=(*kept, *spare[:missing])[: len(places)], left_out=tuple(spare[missing:]),
            seconds=seconds, reward_state=save_state(self._reward),
        )  # fmt: skip

    def _without_reward(self, number: int, groups: Sequence[Group]) -> RunError:
        """Nothing can be learned of such a round. What was drawn waits for its rewards, in the first rank's part."""

        def wait() -> None:
            self._keep_part(number, [unscored(group) for group in groups if is_answered(group)])
            for part in self._folder.glob(f"{number:06d}.part-*.jsonl"):
                if part != self._part(number):
                    part.unlink()

        self._ranks.on_main(wait, "the round, which has no reward")
        return RunError(
            f"no completion of round {number} has a reward", found=first_complaint(groups),
            fix="mend the reward, or the engine; the same command goes on with the completions that are there",
        )  # fmt: skip

    def _together(self, mine: Sequence[Group], asked: Sequence[int], seconds: dict[str, float]) -> list[Group]:
        """The groups of all ranks in the order in which their prompts were asked for, scored."""
        groups = list(mine)
        if self._ranks.world > 1:
            rows = [row for group in mine for row in group_rows(group, trained=True)]
            every = [row for part in self._ranks.everyone(rows, "the rollouts") for row in part]
            by_place = {place_of(group): group for group in groups_of(every, self._prompts)[True]}
            groups = [by_place[place] for place in asked]
        if not self._scored_together:
            return groups

        def scored() -> tuple[list[tuple[Score, ...]], RewardState]:
            return self._scores(groups, seconds), save_state(self._reward)

        scores, state = self._ranks.on_main(scored, "the rewards, which the first rank gives")
        load_state(self._reward, state)
        return [replace(group, scores=own) for group, own in zip(groups, scores, strict=True)]

    def _others(self, number: int, tries: int, num: int, seen: set[int]) -> list[int]:
        """Prompts that the round has not asked for, drawn by (seed, round, try)."""
        rest = [place for place in range(len(self._prompts)) if place not in seen]
        draw = np.random.Generator(np.random.PCG64([self._rollout.seed, number, tries]))
        return [rest[int(i)] for i in draw.permutation(len(rest))[:num]]

    def _drawn(
        self, number: int, places: Sequence[int], seconds: dict[str, float], known: Iterable[Group] = ()
    ) -> list[Group]:
        """The prompts at these places with their completions, not scored yet. Where the engine gives up, the prompts
        that are whole stay in the part, beside those `known`."""
        beat("generating")
        asked = {place: list(self._requests(number, place)) for place in places}
        begun, said = time.perf_counter(), dict[str, Completion]()
        try:
            for completion in self._engine.generate([request for own in asked.values() for request in own]):
                said[completion.key] = completion
        except UserError:
            whole = [place for place, own in asked.items() if all(request.key in said for request in own)]
            self._keep_part(number, [*known, *(self._group(place, asked[place], said) for place in whole)])
            raise
        seconds["generate"] += time.perf_counter() - begun
        return [self._group(place, own, said) for place, own in asked.items()]

    def _group(self, place: int, asked: Sequence[Request], said: Mapping[str, Completion]) -> Group:
        return Group(
            prompt=self._prompts[place],
            completions=tuple(said[request.key] for request in asked),
            scores=(UNSCORED,) * len(asked),
            columns={"place": place},
        )

    def _scored(self, groups: Sequence[Group], seconds: dict[str, float]) -> list[Group]:
        """The same groups; those that have their scores keep them."""
        waiting = [group for group in groups if not is_scored(group)]
        scores = iter(self._scores(waiting, seconds) if waiting else ())
        return [group if is_scored(group) else replace(group, scores=next(scores)) for group in groups]

    def _scores(self, groups: Sequence[Group], seconds: dict[str, float]) -> list[tuple[Score, ...]]:
        begun = time.perf_counter()
        completions = [completion for group in groups for completion in group.completions]
        asked = [group.prompt for group in groups for _ in group.completions]
        scores = self._reward.score(asked, completions)
        seconds["score"] += time.perf_counter() - begun
        ends = np.cumsum([len(group.completions) for group in groups]).tolist()
        return [tuple(scores[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def _requests(self, number: int, place: int) -> Iterator[Request]:
        config, prompt = self._rollout, self._prompts[place]
        asked = self._renderer.ask(prompt.messages, prompt.tools, origin=prompt.origin)
        for index in range(config.group_size):
            yield asked.request(f"{number}/{self._keys[place]}#{index}", sampling_of(config), config.seed)
