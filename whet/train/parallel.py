"""Devices and ranks, by accelerate: the loop and the learners never ask where they run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor

from whet.objectives.loss import Total
from whet.schema.metrics import Mean
from whet.train.narrow import NarrowWeights
from whet.train.optim import Optimizer


class Parallel:
    """One process of a training job.

    Mixed precision is autocast around the forward pass only. fp16 has a loss scale, and its weights are fp32.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        AcceleratorState._reset_state(reset_partial_state=not PartialState().use_distributed)
        self._accelerator = Accelerator(cpu=device.type == "cpu")
        self._dtype = dtype
        self._scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.device = device

    @property
    def rank(self) -> int:
        return int(self._accelerator.process_index)

    @property
    def world(self) -> int:
        return int(self._accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        return bool(self._accelerator.is_main_process)

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model ready for this job's ranks (DDP where there are several)."""
        return self._accelerator.prepare_model(model) if self.world > 1 else model

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Compute in the configured precision."""
        with torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            yield

    def sum(self, value: float) -> float:
        """Add a number over all ranks."""
        if self.world == 1:
            return value
        # MPS has no float64, and NCCL sums on the device: counts below 2^24 are exact in fp32 as well.
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        total = self._accelerator.reduce(torch.tensor(value, dtype=wide, device=self.device), reduction="sum")
        return float(total)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, one after the other; ranks may hold different numbers of them."""
        if self.world == 1:
            return rows
        parts: list[Tensor | None] = [None] * self.world
        torch.distributed.all_gather_object(parts, rows.cpu())
        return torch.cat([part for part in parts if part is not None]).to(rows.device)

    def means(self, totals: Mapping[str, Total]) -> dict[str, Mean]:
        """Bring device-side totals to the host, added over all ranks: one transfer, whatever their number."""
        if not totals:
            return {}
        flat = torch.stack([*(t.total.detach().float() for t in totals.values())])
        counts = torch.tensor([t.count for t in totals.values()], dtype=torch.float32, device=flat.device)
        both = torch.stack([flat, counts])
        if self.world > 1:
            both = self._accelerator.reduce(both, reduction="sum")
        sums, nums = both.tolist()
        return {name: Mean(s, n) for name, s, n in zip(totals, sums, nums, strict=True)}

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this rank's share of the loss. DDP averages over ranks: the share is scaled back up."""
        torch.autograd.backward(self._scaler.scale(loss * self.world))

    def step(self, optimizer: Optimizer, parameters: list[torch.nn.Parameter], max_norm: float | None) -> float:
        """Clip, step, clear. Returns the gradient norm before clipping."""
        limit = math.inf if max_norm is None else max_norm
        match optimizer:
            case NarrowWeights():
                norm = optimizer.clip(limit)
                optimizer.step()
            case torch.optim.Optimizer():
                self._scaler.unscale_(optimizer)
                norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
                self._scaler.step(optimizer)
                self._scaler.update()
        optimizer.zero_grad()
        return float(norm)

    @property
    def scaler(self) -> dict[str, float]:
        """fp16's gradient scale and how many steps it has stood: part of a checkpoint, empty in other precisions."""
        return dict(self._scaler.state_dict())

    def restore_scaler(self, state: Mapping[str, float]) -> None:
        if state:
            self._scaler.load_state_dict(dict(state))

    @property
    def skips_overflows(self) -> bool:
        """Whether a step with an infinite gradient is left out (fp16) instead of taken."""
        return self._scaler.is_enabled()

    def wait(self) -> None:
        """Hold until every rank is here."""
        self._accelerator.wait_for_everyone()


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process has held: on CUDA of the device's allocator, else resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
