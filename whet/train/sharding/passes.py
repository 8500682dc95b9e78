"""Passes in step: where weights are in parts, a pass through the model needs every rank, and ranks have different
numbers of micro-batches, of references to measure, of rows to evaluate.

So before a pass a rank says what it is about to do, and all do what comes first in

    LOOK   a pass without gradient
    LEARN  a pass with gradient, forward and backward
    MEET   nothing more: it waits where all of them meet

A rank with something else in mind lends a hand: it takes a row of two tokens through the model, and its gradient is
multiplied by 0. Exactly nothing is added by that.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, distributed

from whet.models.backbone import Backbone
from whet.models.mode import evaluating
from whet.models.rows import from_trees
from whet.ranks.pulse import waiting
from whet.schema.packed import Packed, Tree
from whet.train.sharding.holding import Score


class Wish(IntEnum):
    """In the order in which they are done."""

    LOOK = 0
    LEARN = 1
    MEET = 2


class Passes:
    """Keeps the passes of all ranks in step."""

    def __init__(
        self, scorer: torch.nn.Module, score: Score, device: torch.device,
        forward: Callable[[], AbstractContextManager[None]], backward: Callable[[Tensor], None], *, looks: bool,
        learns: bool,
    ) -> None:  # fmt: skip
        """`score` is what a pass with gradient calls, within `forward`, before `backward`. Without `looks` or `learns`
        such passes need nobody."""
        self._scorer, self._score, self._device = scorer, score, device
        self._forward, self._backward = forward, backward
        self._shared = {Wish.LOOK: looks, Wish.LEARN: learns, Wish.MEET: True}
        self._helping = False
        for module in scorer.modules():
            if isinstance(backbone := getattr(module, "backbone", None), Backbone):
                backbone.at_once = True
        scorer.register_forward_pre_hook(self._before, prepend=True)

    def meet(self) -> None:
        """Lend a hand until every rank is here."""
        self._agree(Wish.MEET)

    def begin(self) -> None:
        """A first pass, while what trains is as it will train: the engines look at `requires_grad` and at which module
        reads which weight when they first gather them, and a reference may switch to another adapter."""
        if self._shared[Wish.LOOK]:
            self._lend(Wish.LOOK)

    def _before(self, module: torch.nn.Module, inputs: Any) -> None:
        if not self._helping:
            self._agree(Wish.LEARN if torch.is_grad_enabled() else Wish.LOOK)

    def _agree(self, wish: Wish) -> None:
        """Returns when it is the wish's turn."""
        while self._shared[wish]:
            counts = torch.zeros(len(Wish), dtype=torch.int64)
            counts[wish] = 1
            with waiting("the next pass through the model"):
                distributed.all_reduce(counts)
            now = Wish(int(counts.nonzero()[0]))
            if now == wish:
                return
            self._lend(now)

    def _lend(self, now: Wish) -> None:
        self._helping = True
        try:
            learns = now == Wish.LEARN
            with evaluating(self._scorer), torch.set_grad_enabled(learns), self._forward():
                loss = _sum((self._score if learns else self._scorer)(self._row()))
            if learns:
                self._backward(0.0 * loss)
        finally:
            self._helping = False

    def _row(self) -> Packed:
        return from_trees(torch.zeros(2, dtype=torch.int64, device=self._device), (Tree(0, 1, (1,)),))


def _sum(scores: Any) -> Tensor:
    """Of everything in a scorer's answer that carries a gradient."""
    if isinstance(scores, Tensor):
        return scores.float().sum()
    parts = [getattr(scores, name) for name in scores.__dataclass_fields__]
    sums = [_sum(part) for part in parts if part is not None and not _constant(part)]
    return torch.stack(sums).sum()


def _constant(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dtype == torch.bool
