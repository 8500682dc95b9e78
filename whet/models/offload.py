"""Activations in the host's memory between forward and backward pass: room on a GPU, for the time of two copies.

torch's own `save_on_cpu` copies a tensor once for each operation that keeps it, and the weights too. Here a tensor goes
once, comes back once, and weights, buffers and what is small stay where they are.
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import PreTrainedModel

LEAST_BYTES = 1 << 16
"""Smaller tensors are not worth a copy."""


def offloading(whole: PreTrainedModel, device: torch.device) -> AbstractContextManager[Any]:
    """While it is open, what autograd keeps on the device goes to the host; each comes back when it is wanted."""
    host = _Host(whole, device)
    return torch.autograd.graph.saved_tensors_hooks(host.take, host.give)


class _Away:
    """A tensor of the device's, as it lies on the host."""

    __slots__ = ("__weakref__", "_back", "_host")

    def __init__(self, tensor: Tensor) -> None:
        pinned = tensor.device.type == "cuda"
        self._host = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, pin_memory=pinned)
        # On the stream of the computation, so that copies, and what writes over the tensor, keep their order.
        self._host.copy_(tensor.detach(), non_blocking=pinned)
        self._back: weakref.ref[Tensor] | None = None

    def returned(self, device: torch.device) -> Tensor:
        """On the device again: the same tensor for all who ask while one of them holds it."""
        back = None if self._back is None else self._back()
        if back is None:
            back = self._host.to(device, non_blocking=True, copy=True)
            self._back = weakref.ref(back)
        return back


class _Host:
    def __init__(self, whole: PreTrainedModel, device: torch.device) -> None:
        self._device = device
        self._stay = {tensor.untyped_storage()._cdata for tensor in (*whole.parameters(), *whole.buffers())}
        self._gone: dict[tuple[Any, ...], tuple[StorageWeakRef, weakref.ref[_Away]]] = {}

    def take(self, tensor: Tensor) -> Tensor | _Away:
        storage = tensor.untyped_storage()
        if tensor.device != self._device or tensor.nbytes < LEAST_BYTES or storage._cdata in self._stay:
            return tensor
        if tensor.layout != torch.strided or not _is_dense(tensor):
            return tensor
        key = storage._cdata, tensor.storage_offset(), tensor.size(), tensor.stride(), tensor.dtype, tensor._version
        known = self._gone[key][1]() if key in self._gone else None
        if known is not None:
            return known
        away = _Away(tensor)
        # A weak reference to the storage keeps its address from being another's; one to the copy lets it go in time.
        self._gone[key] = StorageWeakRef(storage), weakref.ref(away)  # type: ignore[no-untyped-call]
        return away

    def give(self, kept: Tensor | _Away) -> Tensor:
        return kept.returned(self._device) if isinstance(kept, _Away) else kept


def _is_dense(tensor: Tensor) -> bool:
    """Whether its numbers fill its memory, each once: a copy takes no more, and may lie in the same order."""
    expected = 1
    for size, stride in sorted(zip(tensor.size(), tensor.stride(), strict=True), key=lambda pair: pair[1]):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
