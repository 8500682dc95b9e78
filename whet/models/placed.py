"""A model that does not train, on a device; where the device's memory runs out it goes on on the CPU and says so."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from whet.models.device import give_back_cached

M = TypeVar("M")
R = TypeVar("R")


class Placed(Generic[M]):
    """What `make` gives for a device: made at the first use, and once more on the CPU where it must move there."""

    def __init__(
        self, make: Callable[[torch.device], M], device: torch.device, *, fall_back: bool, what: str
    ) -> None:
        """`what` is its name in the message. Without `fall_back` running out of memory stays an error."""
        self._make, self._device, self._fall_back, self._what = make, device, fall_back, what
        self._made: M | None = None

    @property
    def device(self) -> torch.device:
        """Where it is now."""
        return self._device

    def use(self, work: Callable[[M], R]) -> R:
        """The result of `work` on it. Work that ran out of memory is done again from its beginning."""
        try:
            return work(self.here())
        except torch.OutOfMemoryError:
            if not self.may_move:
                raise
        # Outside of the handler: the error holds the frames, and they what was on the device.
        self.move()
        return work(self.here())

    @property
    def may_move(self) -> bool:
        return self._fall_back and self._device.type != "cpu"

    def here(self) -> M:
        if self._made is None:
            self._made = self._make(self._device)
        return self._made

    def release(self) -> None:
        """Give up what was made: its memory is free until the next use makes it again."""
        if self._made is None:
            return
        self._made = None
        gc.collect()  # modules and what hangs on them refer to each other
        give_back_cached()

    def move(self) -> None:
        """To the CPU, at the next use."""
        print(f"no room for {self._what} on {self._device}: it goes on on the CPU, more slowly", file=sys.stderr)
        self._made, self._device = None, torch.device("cpu")
        give_back_cached()
