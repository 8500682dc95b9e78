"""Devices and ranks: the loop and the learners never ask where they run.

All that ranks say to each other while they train goes through here. Either every rank holds the whole model, and a
step adds the gradients of all, so that each takes the same step; or the weights are in parts, and an engine of
`whet.train.sharding` holds them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

import numpy as np
import torch
from torch import Tensor, distributed

from whet.config.sharding import NoSharding, Sharding
from whet.config.train import Train
from whet.errors import ConfigError
from whet.models.device import has_own_memory
from whet.models.parts import Parts
from whet.objectives.loss import Total
from whet.ranks.group import ALONE, Ranks
from whet.ranks.pulse import waiting
from whet.schema.metrics import Mean, Metric, merge
from whet.train.narrow import NarrowWeights
from whet.train.optim import Optimizer, build_optimizer, clip
from whet.train.sharding.choose import holding_of
from whet.train.sharding.holding import Holding, Score
from whet.train.sharding.passes import Passes

WHOLE = NoSharding()


class Parallel:
    """One process of a training job.

    Mixed precision is autocast around the forward pass only. fp16 has a loss scale, and its weights are fp32.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype, ranks: Ranks = ALONE, sharding: Sharding = WHOLE
    ) -> None:
        """Raises ConfigError where ranks of this machine would share a GPU, which NCCL does not allow, and for ranks on
        devices whose way of talking to each other is not set up here."""
        if ranks.world > 1 and device.type not in ("cpu", "cuda"):
            raise ConfigError(
                "ranks compute on CPUs or on CUDA devices", field="launch.processes",
                found=f"{ranks.world} ranks on {device.type}", fix="start one",
            )  # fmt: skip
        if ranks.world > 1 and device.type == "cuda" and ranks.local_world > torch.cuda.device_count():
            raise ConfigError(
                "there are more ranks than GPUs", field="launch.processes",
                found=f"{ranks.local_world} ranks, {torch.cuda.device_count()} GPUs", fix="start one a GPU",
            )  # fmt: skip
        self.ranks, self._dtype = ranks, dtype
        self._holding = holding_of(sharding, device, dtype, ranks)
        self._passes: Passes | None = None
        self._turns, self._turn = 0, 0
        """Backward passes of the step, over which every rank goes, and those that are done."""
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

    @property
    def holding(self) -> Holding | None:
        """What holds the weights in parts; None where every rank has the whole model."""
        return self._holding

    @property
    def parts(self) -> Parts | None:
        """What gives their tensors whole."""
        held = self._holding
        return None if held is None else Parts(whole=held.whole, shape=held.shape, writes=self.is_main)

    def hold(self, scorer: torch.nn.Module, train: Train) -> tuple[Score, Optimizer]:
        """Put the model where its training wants it. Returns what is called for a pass, and the optimiser."""
        if self._holding is None:
            return scorer, build_optimizer(scorer, train)
        score, optimizer = self._holding.hold(scorer, train)
        self._passes = Passes(
            scorer, score, self.device, self.forward, self.backward, looks=self._holding.looks,
            learns=self._holding.learns,
        )  # fmt: skip
        self._passes.begin()
        return score, optimizer

    def begin(self, batches: int) -> None:
        """A step of so many micro-batches on this rank."""
        self._turn = 0
        self._turns = batches if self._holding is None else max(1, *self.ranks.everyone(batches, "the micro-batches"))

    def meet(self) -> None:
        """Before ranks speak to each other: those that are here take part in the passes of those that are not."""
        if self._passes is not None:
            self._passes.meet()

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Compute in the configured precision."""
        with torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            yield

    def sum(self, value: float) -> float:
        """Add a number over all ranks."""
        if self.world == 1:
            return value
        self.meet()
        total = torch.tensor(value, dtype=torch.float64)
        with waiting("the sum of a number"):
            distributed.all_reduce(total)
        return float(total)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, one after the other; ranks may hold different numbers of them."""
        if self.world == 1:
            return rows
        self.meet()
        return torch.cat(self.ranks.everyone(rows.cpu(), "the rows of all")).to(rows.device)

    def total(self, numbers: Tensor) -> Tensor:
        """Added over all ranks, each of which may have measured some of them and left the others 0."""
        if self.world > 1:
            self.meet()
            numbers = numbers.clone()
            with waiting("what each has measured"):
                distributed.all_reduce(numbers)
        return numbers

    def means(self, totals: Mapping[str, Total]) -> dict[str, Metric]:
        """Bring device-side totals to the host in one transfer, and add them over all ranks."""
        own = on_host(totals)
        if self.world == 1:
            return own
        self.meet()
        # A rank that had no records of a step has no names either.
        return merge([part for part in self.ranks.everyone(own, "the metrics") if part])

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a share of the loss; `step` adds the ranks' shares."""
        self._turn += 1
        if self._holding is not None:
            self._holding.backward(loss, last=self._turn == self._turns)
            return
        torch.autograd.backward(self._scaler.scale(loss))

    def step(self, optimizer: Optimizer, parameters: list[torch.nn.Parameter], max_norm: float | None) -> float:
        """Clip, step, clear. Returns the gradient norm before clipping."""
        limit = math.inf if max_norm is None else max_norm
        if self._holding is not None:
            self.meet()
            return self._holding.step(limit)
        # A weight that no rank has a gradient for decays and drifts all the same, as it does in parts.
        match optimizer:
            case NarrowWeights():
                optimizer.fill_gradients()
                if self.world > 1:
                    self._add_up(optimizer.wide_gradients())
                norm = optimizer.clip(limit)
                optimizer.step()
            case torch.optim.Optimizer():
                gradients = [_gradient(parameter) for parameter in parameters]
                if self.world > 1:
                    self._add_up(gradients)
                self._scaler.unscale_(optimizer)
                norm = clip(optimizer, limit)
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
        self.meet()
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
    """Most memory this process has held: of the allocator of a device that has its own, else what was resident."""
    if has_own_memory(device):
        return int(torch.get_device_module(device).max_memory_allocated(device))
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
