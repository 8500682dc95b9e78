"""Feeds: which records make which step.

An offline feed is a pure function of the step number: the order of an epoch is a permutation of (seed, epoch), so a
resumed run needs nothing but its step to go on with the very next record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from whet.data.pack import fill

Batch = TypeVar("Batch")
BatchOut = TypeVar("BatchOut", covariant=True)


class Feed(Protocol[BatchOut]):
    """Gives the micro-batches of an optimiser step."""

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole training."""
        ...

    def epoch(self, step: int) -> float:
        """Passes over the data completed once `step` steps are done."""
        ...

    def ends_epoch(self, step: int) -> bool:
        """Whether the `step`-th step (1-based) is the last of its epoch."""
        ...

    def micro_batches(self, step: int) -> Sequence[BatchOut]:
        """This rank's micro-batches of 0-based step `step`."""
        ...

    def metrics(self, step: int) -> Mapping[str, float]:
        """What is to be logged of how the step's batches came about."""
        ...

    def rest(self) -> None:
        """Until nothing is under way that a run going on from a checkpoint made now would not find."""
        ...


class OfflineFeed(Generic[Batch]):
    """A fixed data set, reshuffled each epoch; the last, smaller batch of an epoch is trained on too.

    A step takes `batch_size` records, however many ranks share them: which records make which step does not depend on
    where a plan runs. Some ranks may get fewer than others and, at worst, none. A step's records are packed into
    micro-batches of at most `micro_batch_tokens` tokens, which changes nothing about the gradient.
    """

    def __init__(
        self,
        lengths: Sequence[int] | NDArray[np.int64],
        collate: Callable[[Sequence[int]], Batch],
        *,
        batch_size: int,
        micro_batch_tokens: int,
        epochs: int,
        max_steps: int | None,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """`lengths` are the tokens of each record."""
        self._lengths, self._collate, self._seed = lengths, collate, seed
        self._batch_size, self._micro_batch_tokens = batch_size, micro_batch_tokens
        self._rank, self._world = rank, world
        self._steps_per_epoch = math.ceil(len(lengths) / batch_size)
        self._num_steps = max_steps if max_steps is not None else self._steps_per_epoch * epochs
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    @property
    def num_steps(self) -> int:
        return self._num_steps

    def epoch(self, step: int) -> float:
        return step / self._steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        return step % self._steps_per_epoch == 0

    def indices(self, step: int) -> list[int]:
        """Positions of this rank's records in 0-based step `step`."""
        epoch, place = divmod(step, self._steps_per_epoch)
        if self._order[0] != epoch:
            generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            self._order = (epoch, generator.permutation(len(self._lengths)))
        size = self._batch_size
        return [int(i) for i in self._order[1][place * size : (place + 1) * size][self._rank :: self._world]]

    def metrics(self, step: int) -> Mapping[str, float]:
        return {}

    def rest(self) -> None:
        return None

    def micro_batches(self, step: int) -> list[Batch]:
        return [self._collate(part) for part in packed(self.indices(step), self._lengths, self._micro_batch_tokens)]


def packed(records: Sequence[int], lengths: Sequence[int] | NDArray[np.int64], capacity: int) -> list[list[int]]:
    """The records in micro-batches of at most `capacity` tokens."""
    return [[records[i] for i in part] for part in fill([int(lengths[r]) for r in records], capacity)]


WINDOW = 4096
"""Records that are packed together where there are more: first fit compares each with every micro-batch begun."""


class Batches(Sequence[Batch]):
    """Micro-batches of fixed records, each made when it is asked for."""

    def __init__(
        self,
        records: Sequence[int],
        lengths: Sequence[int] | NDArray[np.int64],
        collate: Callable[[Sequence[int]], Batch],
        capacity: int,
    ) -> None:
        """At most `capacity` tokens each."""
        windows = (records[first : first + WINDOW] for first in range(0, len(records), WINDOW))
        self._parts = [part for window in windows for part in packed(window, lengths, capacity)]
        self._collate = collate

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(index, slice):
            return [self._collate(part) for part in self._parts[index]]
        return self._collate(self._parts[index])
