"""Rounds of rollouts in the order of training: which prompts, drawn with which weights, and how far ahead.

Without staleness a round is drawn when its first step begins, with the weights of that step. With a staleness of 1 it
is drawn in a thread of its own while the round before it is trained on, with the weights of that round's first step;
prompts that replace those without a signal (DAPO) follow with the weights of its own first step.
The thread does this rank's part alone: ranks speak to each other in one thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

from whet.errors import RunError
from whet.experience.round_file import Round
from whet.experience.rounds import Rounds, Share
from whet.rollout.engine import Engine
from whet.schema.rollouts import Completion, Request
from whet.train.feed import OfflineFeed


@dataclass(frozen=True, slots=True)
class UntilStopped:
    """An engine that gives no more answers once `stopped` is set, so that whoever waits for them in a thread ends."""

    engine: Engine
    stopped: Event

    @property
    def batched(self) -> bool:
        return self.engine.batched

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Raises RunError instead of going on, also behind the last answer: nobody is to begin with their rewards."""
        for completion in self.engine.generate(requests):
            yield completion
            if self.stopped.is_set():
                raise RunError("the run has ended before its round", fix="the same command goes on with it")

    def sync(self, version: int) -> None:
        self.engine.sync(version)

    def close(self) -> None:
        self.engine.close()


class RoundOrder:
    """Gives round after round, and says where the prompts' epochs end."""

    def __init__(
        self,
        rounds: Rounds,
        sync: Callable[[int], None],
        *,
        num_prompts: int,
        batch_size: int,
        epochs: int,
        max_steps: int | None,
        steps_per_round: int,
        seed: int,
        staleness: int = 0,
    ) -> None:
        """`batch_size` prompts a round, over all ranks; `sync(step)` gives the engine the weights of that step."""
        self._rounds, self._sync, self._staleness = rounds, sync, staleness
        self.steps_per_round = steps_per_round
        self._prompts = OfflineFeed(
            [1] * num_prompts, list, batch_size=batch_size, micro_batch_tokens=1, epochs=epochs, max_steps=None,
            seed=seed,
        )  # fmt: skip
        self.num_steps = max_steps if max_steps is not None else self._prompts.num_steps * steps_per_round
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollouts") if staleness else None
        self._ahead: tuple[int, Future[Share]] | None = None

    def epoch(self, step: int) -> float:
        return self._prompts.epoch(step) / self.steps_per_round

    def ends_epoch(self, step: int) -> bool:
        return step % self.steps_per_round == 0 and self._prompts.ends_epoch(step // self.steps_per_round)

    def get(self, number: int, step: int) -> Round:
        """Round `number`, asked for at `step`; where rounds are drawn ahead, the next one begins."""
        places = self._prompts.indices(number)
        if self._ahead is not None and self._ahead[0] == number:
            made = self._rounds.finish(number, places, self._ahead[1].result(), lambda: self._sync(step))
        else:
            made = self._rounds.make(number, places, lambda: self._sync(step))
        if self._thread is not None and (number + 1) * self.steps_per_round < self.num_steps:
            self._sync(step)
            ahead = self._prompts.indices(number + 1)
            self._ahead = number + 1, self._thread.submit(self._rounds.begin, number + 1, ahead)
        return made

    def wait(self) -> None:
        """Until no round is being drawn: before a checkpoint, so that a run that goes on from it finds the round that
        was drawn with weights it no longer has; and before anyone else uses the engine."""
        if self._ahead is not None:
            self._ahead[1].result()

    def close(self) -> None:
        """Wait for the thread to end: what it does after this process has let go of its run directory might meet
        another's work. It goes on with a round that is being drawn unless its engine stops."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
