"""A decoding step recorded once and replayed: CUDA graphs.

A step is a thousand short kernels, and a GPU waits longer for Python to launch them than it computes. Which ones they
are, and where their tensors lie, changes only when rows enter or leave or the room for their tokens grows. The first
step of a new shape runs as usual, in which libraries choose their kernels; the second is recorded, and the others are
launched at once. All that differs between them is read from tensors that stay in place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from whet.models.decoding import KeyValues

Layers = Callable[[Tensor, Tensor, KeyValues], Tensor]
"""Ids and positions [T] to hidden states [T, H]; the memory has begun its step."""
Replay = Callable[[], object]
Record = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""From a computation to what computes it again, and where its result then lies. Recording need not compute it."""


class Recorded:
    """The same as `layers`, for a memory that is recordable."""

    def __init__(self, layers: Layers, record: Record) -> None:
        self._layers, self._record = layers, record
        self._shape: object = None
        self._replay: Replay | None = None
        self._refused = False

    def __call__(self, ids: Tensor, positions: Tensor, memory: KeyValues) -> Tensor:
        """[T, H], valid until the next call."""
        new = memory.shape is not self._shape
        if new or self._refused:
            self._shape, self._replay = memory.shape, None
            return self._layers(ids, positions, memory)
        if self._replay is None:
            self._ids, self._positions = ids.clone(), positions.clone()
            try:
                self._replay, self._hidden = self._record(lambda: self._layers(self._ids, self._positions, memory))
            except RuntimeError as error:
                self._refused = True
                reason = str(error).partition("\n")[0]
                warnings.warn(f"decoding steps of this model are launched kernel by kernel: {reason}", stacklevel=2)
                return self._layers(ids, positions, memory)
        self._ids.copy_(ids)
        self._positions.copy_(positions)
        self._replay()
        return self._hidden


def cuda_graph(compute: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
    """Raises RuntimeError where a kernel waits for the host, which cannot be recorded."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = compute()
    return graph.replay, out
