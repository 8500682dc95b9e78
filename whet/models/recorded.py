"""A decoding step recorded once and replayed: CUDA graphs.

A step is a thousand short kernels, and a GPU waits longer for Python to launch them than it computes. Which ones they
are, and where their tensors lie, changes only when rows enter or leave or the room for their tokens grows. The first
step of a new arrangement runs as usual, in which libraries choose their kernels; the second is recorded, and the others
are launched at once. All that differs between them is read from tensors that stay in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.errors import RunError
from whet.models.decoding import KeyValues

Layers = Callable[[Tensor, Tensor, KeyValues], Tensor]
"""Ids and positions [T] to hidden states [T, H]; the memory has begun its step."""
Replay = Callable[[], object]
Record = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""From a computation to what computes it again, and where its result then lies. Recording need not compute it."""


@dataclass(frozen=True, slots=True)
class _Recording:
    """What a replay reads, and where it writes."""

    replay: Replay
    ids: Tensor
    positions: Tensor
    hidden: Tensor


class Recorded:
    """The same as `layers`, for a memory that is recordable."""

    def __init__(self, layers: Layers, record: Record) -> None:
        self._layers, self._record = layers, record
        self._arrangement: object = None
        self._recording: _Recording | None = None

    def __call__(self, ids: Tensor, positions: Tensor, memory: KeyValues) -> Tensor:
        """[T, H], valid until the next call."""
        if memory.arrangement is not self._arrangement:
            self._arrangement, self._recording = memory.arrangement, None
            return self._layers(ids, positions, memory)
        if self._recording is None:
            own_ids, own_positions = ids.clone(), positions.clone()
            replay, hidden = self._record(lambda: self._layers(own_ids, own_positions, memory))
            self._recording = _Recording(replay, own_ids, own_positions, hidden)
        recording = self._recording
        recording.ids.copy_(ids)
        recording.positions.copy_(positions)
        recording.replay()
        return recording.hidden


def cuda_graph(compute: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
    """Not while other threads of this process use the device. Raises RunError where the computation waits for the
    host, which cannot be recorded."""
    # torch.cuda.graph would also give all cached memory back to the driver each time.
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            graph.capture_begin()
            try:
                out = compute()
            finally:
                graph.capture_end()
    except RuntimeError as error:
        first = error.__context__ or error  # the end of a recording that failed is an error too
        if isinstance(first, torch.OutOfMemoryError):
            raise first from None
        raise RunError(
            "the decoding steps of this model cannot be recorded", field="rollout.engine.graphs",
            found=str(first).partition("\n")[0], fix="leave the key out",
        ) from error  # fmt: skip
    torch.cuda.current_stream().wait_stream(side)
    return graph.replay, out
