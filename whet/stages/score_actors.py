"""Several reward models on the actors of a Ray cluster: windows of rows go to whoever is free, scores come in order.

Ray starts an actor that is lost again, and gives it anew what it had not answered: a score is a function of its row, so
nothing else needs to be known.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from whet.errors import ConfigError, RunError
from whet.rollout.cluster import answer_of, connect, described, lost_errors, room
from whet.stages.score_rows import ScoreRow
from whet.stages.scorer import Scorer, Scores, Scoring

RESTARTS = 3
"""Losses of an actor that are borne."""
AHEAD = 3
"""Windows for each actor that are read before the first of them is scored."""


class ScoreActor:
    """One of them. The model is loaded by the first call, so that what is wrong with it comes back whole."""

    def __init__(self, scoring: Scoring, directory: str) -> None:
        self._scoring, self._directory = scoring, directory
        self._scorer: Scorer | None = None

    def budget(self) -> int:
        return self._here().budget()

    def score(self, rows: list[ScoreRow]) -> Scores:
        return self._here().score(rows)

    def _here(self) -> Scorer:
        if self._scorer is None:
            os.chdir(self._directory)  # where paths of pictures start
            self._scorer = Scorer(self._scoring)
        return self._scorer


@dataclass(slots=True, eq=False)
class _Window:
    """Rows on their way."""

    rows: list[ScoreRow]
    actor: int
    scores: Any
    """A reference to what will be their scores."""


class ScoreActors:
    """`actors` of them, which this process starts and ends."""

    def __init__(self, scoring: Scoring, *, actors: int, address: str | None) -> None:
        """Comes back when all have their model. Raises ConfigError where the cluster has no room for them, and whatever
        UserError they raise."""
        self._ray = connect(address, "--address")
        resources = _resources(self._ray, scoring.model.device)
        found = self._ray.cluster_resources()
        if any(found.get(name, 0.0) < actors * each for name, each in resources.items()):
            raise ConfigError(
                "the cluster has no room for so many", field="--actors", found=f"{actors}; {room(self._ray)}",
                fix=f"each reserves {described(resources)}: lower the number, or add nodes",
            )  # fmt: skip
        kind = self._ray.remote(
            num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0), max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )(ScoreActor)  # fmt: skip
        self._actors = [kind.remote(scoring, os.getcwd()) for _ in range(actors)]
        self._smallest = min(self._get(told) for told in [actor.budget.remote() for actor in self._actors])

    def budget(self) -> int:
        """Tokens of a batch on the actor that has the least room."""
        return int(self._smallest)

    def scored(self, windows: Iterable[list[ScoreRow]]) -> Iterator[tuple[list[ScoreRow], Scores]]:
        """Each window with its scores, in their order."""
        ahead: deque[_Window] = deque()
        for rows in windows:
            if len(ahead) == AHEAD * len(self._actors):
                yield self._first(ahead)
            actor = self._idlest(ahead)
            ahead.append(_Window(rows, actor, self._actors[actor].score.remote(rows)))
        while ahead:
            yield self._first(ahead)

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)

    def _first(self, ahead: deque[_Window]) -> tuple[list[ScoreRow], Scores]:
        window = ahead.popleft()
        return window.rows, self._get(window.scores)

    def _idlest(self, ahead: Iterable[_Window]) -> int:
        """The actor with the fewest windows to score."""
        windows = {window.scores: window.actor for window in ahead}
        waiting = self._ray.wait(list(windows), num_returns=len(windows), timeout=0)[1] if windows else []
        busy = Counter(windows[scores] for scores in waiting)
        return min(range(len(self._actors)), key=lambda number: busy[number])

    def _get(self, reference: Any) -> Any:
        """Raises the UserError that an actor raised, and RunError for one that was lost too often."""
        try:
            return answer_of(self._ray, reference)
        except lost_errors(self._ray) as error:
            raise RunError(
                "an actor is lost again and again", field="--actors", found=" ".join(str(error).split())[:160],
                fix="if the memory is too small, lower --batch-tokens or --actors",
            ) from None  # fmt: skip


def _resources(ray: ModuleType, device: str) -> dict[str, float]:
    """What an actor reserves: a CPU, and a GPU where there are any and none was declined."""
    gpu = ray.cluster_resources().get("GPU", 0) > 0 and device in ("auto", "cuda")
    return {"CPU": 1.0} | ({"GPU": 1.0} if gpu else {})
