"""Devices and ranks: the loop and the learners never ask where they run.

All that ranks say to each other while they train goes through here. Every rank holds the whole model; a step adds the
gradients of all, so that each takes the same step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

import numpy as np
import torch
from torch import Tensor, distributed

from whet.errors import ConfigError
from whet.objectives.loss import Total
from whet.ranks.group import ALONE, Ranks
from whet.ranks.pulse import waiting
from whet.schema.metrics import Mean, Metric, merge
from whet.train.narrow import NarrowWeights
from whet.train.optim import Optimizer


class Parallel:
    """One process of a training job.

    Mixed precision is autocast around the forward pass only. fp16 has a loss scale, and its weights are fp32.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, ranks: Ranks = ALONE) -> None:
        """Raises ConfigError where ranks of this machine would share a GPU, which NCCL does not allow."""
        if ranks.world > 1 and device.type == "cuda" and ranks.local_world > torch.cuda.device_count():
            raise ConfigError(
                "there are more ranks than GPUs", field="launch.processes",
                found=f"{ranks.local_world} ranks, {torch.cuda.device_count()} GPUs", fix="start one a GPU",
            )  # fmt: skip
        self.ranks, self._dtype = ranks, dtype
        self._scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.device = device

    @property
    def rank(self) -> int:
        return self.ranks.rank

    @property
    def world(self) -> int:
        return self.ranks.world

    @property
    def is_main(self) -> bool:
        return self.ranks.is_main

    @property
    def stream(self) -> IO[str] | None:
        """Where progress is shown: on rank 0 alone."""
        return self.ranks.stream

    def reseed(self, seed: int, step: int) -> None:
        """Begin a step's random numbers (dropout, NEFTune). Rank 0 goes on with the stream of a process alone, which
        checkpoints hold; each other rank's are a function of (seed, step, rank)."""
        if self.rank:
            torch.manual_seed(int(np.random.SeedSequence([seed, step, self.rank]).generate_state(1, np.uint64)[0] >> 1))

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Compute in the configured precision."""
        with torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            yield

    def sum(self, value: float) -> float:
        """Add a number over all ranks."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        with waiting("the sum of a number"):
            distributed.all_reduce(total)
        return float(total)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, one after the other; ranks may hold different numbers of them."""
        if self.world == 1:
            return rows
        return torch.cat(self.ranks.everyone(rows.cpu(), "the rows of all")).to(rows.device)

    def total(self, numbers: Tensor) -> Tensor:
        """Added over all ranks, each of which may have measured some of them and left the others 0."""
        if self.world > 1:
            numbers = numbers.clone()
            with waiting("what each has measured"):
                distributed.all_reduce(numbers)
        return numbers

    def means(self, totals: Mapping[str, Total]) -> dict[str, Metric]:
        """Bring device-side totals to the host in one transfer, and add them over all ranks."""
        own = on_host(totals)
        if self.world == 1:
            return own
        # A rank that had no records of a step has no names either.
        return merge([part for part in self.ranks.everyone(own, "the metrics") if part])

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a share of the loss; `step` adds the ranks' shares."""
        torch.autograd.backward(self._scaler.scale(loss))

    def step(self, optimizer: Optimizer, parameters: list[torch.nn.Parameter], max_norm: float | None) -> float:
        """Clip, step, clear. Returns the gradient norm before clipping."""
        limit = math.inf if max_norm is None else max_norm
        match optimizer:
            case NarrowWeights():
                if self.world > 1:
                    self._add_up(optimizer.wide_gradients())
                norm = optimizer.clip(limit)
                optimizer.step()
            case torch.optim.Optimizer():
                if self.world > 1:
                    self._add_up([_gradient(parameter) for parameter in parameters])
                self._scaler.unscale_(optimizer)
                norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
                self._scaler.step(optimizer)
                self._scaler.update()
        optimizer.zero_grad()
        return float(norm)

    def _add_up(self, gradients: list[Tensor]) -> None:
        """Replace each gradient by its sum over the ranks.

        Once a step, not once a micro-batch: ranks may pack their records into different numbers of micro-batches, and
        a rank may have none at all.
        """
        for start, end in _buckets([gradient.numel() for gradient in gradients]):
            part = gradients[start:end]
            flat = torch.cat([gradient.flatten() for gradient in part])
            with waiting("the gradients"):
                distributed.all_reduce(flat)
            for gradient, summed in zip(part, torch.split(flat, [g.numel() for g in part]), strict=True):
                gradient.copy_(summed.view_as(gradient))

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
        self.ranks.wait()


def on_host(totals: Mapping[str, Total]) -> dict[str, Metric]:
    """Means of this rank's totals, brought to the host in one transfer."""
    sums = torch.stack([t.total.detach().float() for t in totals.values()]).tolist() if totals else []
    return {name: Mean(s, t.count) for (name, t), s in zip(totals.items(), sums, strict=True)}


BUCKET = 1 << 24
"""Numbers sent at once."""


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _buckets(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of neighbours of at most BUCKET numbers together; a larger one stands alone."""
    start, filled = 0, 0
    for place, size in enumerate(sizes):
        if place > start and filled + size > BUCKET:
            yield start, place
            start, filled = place, 0
        filled += size
    if sizes:
        yield start, len(sizes)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process has held: on CUDA of the device's allocator, else resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
