"""FSDP2 (torch.distributed.fsdp.fully_shard): a rank holds its rows of every tensor, as a DTensor.

A decoder layer is gathered before it computes and given up after it; embeddings, the last norm and the LM head stay
whole from the forward pass to the end of the backward pass, since the head's weight is read outside of its module.
Gradients are added over ranks, not averaged: the loss has been divided by the units of the whole step already.

In bf16 the parts are gathered in bf16, gradients are added in fp32, and the parts themselves are fp32. A score head is
gathered in fp32. A vision tower is whole on every rank: not every rank sees a picture in a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from whet.config.sharding import Fsdp
from whet.config.train import Train
from whet.errors import RunError
from whet.models.parts import Gathered
from whet.models.score_head import ScoreHead
from whet.models.vision import vision_parts
from whet.ranks.group import Ranks
from whet.ranks.pulse import waiting
from whet.train.optim import build_optimizer
from whet.train.sharding.holding import Rows, Score, check_plain, models_of
from whet.train.state import load_state


class FsdpHolding:
    """One model in parts."""

    looks = learns = switches = divides_alone = True

    def __init__(self, config: Fsdp, device: torch.device, dtype: torch.dtype, ranks: Ranks) -> None:
        """Raises RunError where there is no GPU to offload from."""
        if config.cpu_offload and device.type == "cpu":
            raise RunError(
                "there is no GPU to offload from", field="launch.sharding.cpu_offload", found="true",
                fix="leave it out",
            )  # fmt: skip
        self._config, self._device, self._dtype, self._ranks = config, device, dtype, ranks
        self._mesh = init_device_mesh(device.type, (ranks.world,))
        self._divided = False

    def divide(self, scorer: torch.nn.Module) -> None:
        if not self._divided:
            self._shard(scorer, self._mesh)
        self._divided = True

    def hold(self, scorer: torch.nn.Module, train: Train) -> tuple[Score, torch.optim.Optimizer]:
        check_plain(train, self._dtype, "fsdp")
        self.divide(scorer)
        self._modules = [module for module in scorer.modules() if isinstance(module, FSDPModule)]
        for module in self._modules:
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            module.set_reduce_scatter_unused_params(True)
        optimizer = build_optimizer(scorer, train)
        assert isinstance(optimizer, torch.optim.Optimizer), "bf16 weights have been refused"
        self._optimizer = optimizer
        self._parameters: list[Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        return scorer, optimizer

    def _shard(self, scorer: torch.nn.Module, mesh: DeviceMesh) -> None:
        """Bottom-up: score heads and layers, then the rest in one group, whose root is the scorer."""
        offload: OffloadPolicy = CPUOffloadPolicy() if self._config.cpu_offload else OffloadPolicy()
        narrow = MixedPrecisionPolicy(param_dtype=self._dtype, reduce_dtype=torch.float32)
        policy = MixedPrecisionPolicy() if self._dtype == torch.float32 else narrow
        towers = {
            parameter
            for whole in models_of(scorer)
            for part in vision_parts(whole).values()
            for parameter in part.parameters()
        }
        for parameter in towers:
            parameter.data = parameter.data.to(self._device)
        for module in list(scorer.modules()):
            if isinstance(module, ScoreHead):
                fully_shard(module, mesh=mesh, offload_policy=offload)
        for layer in _layers(scorer, towers):
            fully_shard(layer, mesh=mesh, mp_policy=policy, offload_policy=offload)
        fully_shard(scorer, mesh=mesh, mp_policy=policy, offload_policy=offload, ignored_params=towers)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        torch.autograd.backward(loss)

    @torch.no_grad()
    def step(self, max_norm: float) -> float:
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        parts = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
        wholes = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
        with waiting("the gradients"):
            for gradient in wholes:
                distributed.all_reduce(gradient)
            squares = torch.tensor(_squares(parts), dtype=torch.float64)
            distributed.all_reduce(squares)
        norm = math.sqrt(float(squares) + _squares(wholes))
        if norm > max_norm:
            for gradient in (*parts, *wholes):
                gradient.mul_(max_norm / (norm + 1e-6))
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.rest()
        return norm

    def rest(self) -> None:
        # What a pass without gradient has gathered may still be whole.
        for module in self._modules:
            module.reshard()

    def whole(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, DTensor):
            there = tensor.detach().to(self._device)
            assert isinstance(there, DTensor), "moving it leaves it what it is"
            with waiting("the parts of a weight"):
                tensor = there.full_tensor()
        return tensor.detach()

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        return tuple(tensor.shape)

    def state(self) -> Iterator[Gathered]:
        for number, parameter in enumerate(self._parameters):
            for name, value in self._optimizer.state[parameter].items():
                yield Gathered(f"{number}.{name}", value.dtype, tuple(value.shape), partial(self.whole, value))

    def load_state(self, tensors: Mapping[str, Rows]) -> None:
        for key, rows in tensors.items():
            number, name = key.split(".", 1)
            parameter = self._parameters[int(number)]
            if name != "step" and isinstance(parameter, DTensor):
                self._optimizer.state[parameter][name] = self._part(parameter, rows)
            else:
                load_state(self._optimizer, parameter, {name: rows(None)})

    def _part(self, parameter: DTensor, rows: Rows) -> DTensor:
        """This rank's rows of a tensor of the parameter's shape. Each rank but the last ones has as many."""
        local = parameter.to_local()
        length = parameter.shape[0]
        each = -(-length // self._ranks.world)
        start = min(length, each * self._ranks.rank)
        part = rows(slice(start, start + len(local))).to(local.device)
        return DTensor.from_local(
            part, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape,
            stride=parameter.stride(),
        )  # fmt: skip


def _layers(scorer: torch.nn.Module, towers: set[Parameter]) -> list[torch.nn.Module]:
    """What each architecture says is not to be split: its decoder layers."""
    names = {name for whole in models_of(scorer) for name in whole._no_split_modules or ()}
    return [
        module
        for module in scorer.modules()
        if type(module).__name__ in names and not towers.intersection(module.parameters())
    ]


def _squares(tensors: list[Tensor]) -> float:
    """Sum of the squares, in float64."""
    return sum(float(torch.linalg.vector_norm(tensor, dtype=torch.float32)) ** 2 for tensor in tensors)
