"""DeepSpeed's ZeRO-2 and ZeRO-3 (Rajbhandari et al., 1910.02054), by the user's JSON. Imported here only.

ZeRO-2 divides gradients and the optimiser's state among the ranks, ZeRO-3 the weights as well. DeepSpeed averages
gradients over ranks where they are to be added, since the loss has been divided by the units of the whole step: it is
multiplied by the number of ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from whet.config.sharding import DeepSpeed
from whet.config.train import Train
from whet.errors import RunError
from whet.models.parts import Gathered
from whet.ranks.group import Ranks
from whet.ranks.pulse import waiting
from whet.train.optim import build_optimizer
from whet.train.sharding.holding import Rows, Score, check_plain, models_of
from whet.train.sharding.zero_settings import read_settings, settings

AVERAGES = ("exp_avg", "exp_avg_sq")
STEP = "step"


class ZeroHolding:
    """One model in DeepSpeed's hands."""

    learns = True

    def __init__(self, config: DeepSpeed, device: torch.device, dtype: torch.dtype, ranks: Ranks) -> None:
        """Raises RunError where DeepSpeed is missing, ConfigError for a file that it could not be given."""
        self._given, self._path = read_settings(config.config), config.config
        self._package = _deepspeed()
        self._stage: int = self._given["zero_optimization"]["stage"]
        self._device, self._dtype, self._ranks = device, dtype, ranks
        self._engine: Any = None

    @property
    def looks(self) -> bool:
        return self._stage == 3

    @property
    def switches(self) -> bool:
        # ZeRO-3 hangs where some passes leave the adapter out and others do not.
        return self._stage == 2

    divides_alone = False

    def divide(self, scorer: torch.nn.Module) -> None:
        """DeepSpeed divides on all ranks at once, in `hold`."""

    def hold(self, scorer: torch.nn.Module, train: Train) -> tuple[Score, torch.optim.Optimizer]:
        check_plain(train, self._dtype, "deepspeed")
        optimizer = build_optimizer(scorer, train)
        assert isinstance(optimizer, torch.optim.Optimizer), "bf16 weights have been refused"
        self._parameters: list[Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        width = max(model.config.get_text_config().hidden_size for model in models_of(scorer))
        made = settings(
            self._given, self._path, train, world=self._ranks.world, dtype=self._dtype, width=width
        )  # fmt: skip
        # In bf16 DeepSpeed makes its fp32 weights of the bf16 ones, and what training has added would be lost.
        exact = [p.detach().cpu().clone() for p in self._parameters] if self._dtype != torch.float32 else []
        self._engine, self._wrapped, _, _ = self._package.initialize(
            model=scorer, optimizer=optimizer, config=made, dist_init_required=False
        )
        self._plain: Any = self._wrapped.optimizer
        for parameter, weight in zip(self._parameters, exact, strict=bool(exact)):
            self._set(parameter, weight, None)
        return self._engine, self._wrapped

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        with waiting("the gradients"):
            self._engine.backward(loss * self._ranks.world)
            if not last:
                self._engine.step()

    def step(self, max_norm: float) -> float:
        """DeepSpeed has been told of the plan's `max_grad_norm`."""
        with waiting("the optimiser's step"):
            self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def rest(self) -> None:
        """A layer is given up when it has computed."""

    def whole(self, tensor: Tensor) -> Tensor:
        if self._engine is None:
            return tensor.detach()
        with waiting("the parts of a weight"):
            if tensor.requires_grad:
                full: Tensor = self._package.utils.safe_get_full_fp32_param(tensor)
                return full.detach()
            if self._stage == 3:
                with self._package.zero.GatheredParameters([tensor]):
                    return tensor.detach().clone()
        return tensor.detach()

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        return tuple(getattr(tensor, "ds_shape", tensor.shape))

    def state(self) -> Iterator[Gathered]:
        steps = [state[STEP] for state in self._plain.state.values() if STEP in state]
        if not steps:
            return
        self._link()
        for number, parameter in enumerate(self._parameters):
            yield Gathered(f"{number}.{STEP}", torch.float32, (), partial(torch.Tensor.detach, steps[0]))
            for name in AVERAGES:
                yield Gathered(
                    f"{number}.{name}", torch.float32, self.shape(parameter), partial(self._average, parameter, name)
                )

    def _average(self, parameter: Parameter, name: str) -> Tensor:
        with waiting("the parts of the optimiser"):
            full: Tensor = self._package.utils.safe_get_full_optimizer_state(parameter, name)
        return full.detach()

    def load_state(self, tensors: Mapping[str, Rows]) -> None:
        if not tensors:
            return
        for flat in self._flats():
            averages = {name: torch.zeros_like(flat) for name in AVERAGES}
            self._plain.state[flat] = {STEP: tensors[f"0.{STEP}"](None).float(), **averages}
        self._link()
        for number, parameter in enumerate(self._parameters):
            for name in AVERAGES:
                self._set(parameter, tensors[f"{number}.{name}"](None), name)

    def _set(self, parameter: Parameter, value: Tensor, name: str | None) -> None:
        """Put this rank's share of a weight (None) or of an average where DeepSpeed keeps it."""
        utils, value = self._package.utils, value.to(self._device)
        if self._stage == 2 and name is None:
            utils.safe_set_full_fp32_param(parameter, value)
        elif self._stage == 2:
            utils.safe_set_full_optimizer_state(parameter, value, name)
        else:
            size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
            flat = torch.nn.functional.pad(value.flatten(), (0, size * self._ranks.world - value.numel()))
            share = flat[size * self._ranks.rank :][:size]
            if name is None:
                utils.safe_set_local_fp32_param(parameter, share)
            else:
                utils.safe_set_local_optimizer_state(parameter, share, name)

    def _flats(self) -> list[Tensor]:
        """The tensors that the optimiser knows."""
        flats: list[Tensor] = (
            self._wrapped.single_partition_of_fp32_groups
            if self._stage == 2
            else self._wrapped.fp32_partitioned_groups_flat
        )
        return flats

    def _link(self) -> None:
        """Let ZeRO-2 look where each parameter's averages lie. By itself it looks once, after the first group."""
        if self._stage == 2:
            self._wrapped._hp_optimizer_states_linked = False
            self._wrapped._lazy_init_hp_params_optimizer_state()


def _deepspeed() -> ModuleType:
    try:
        import deepspeed  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise RunError(
            "needs a package that is not installed", field="launch.sharding.type", found="deepspeed",
            fix=f"pip install 'whet[deepspeed]' ({error})",
        ) from None  # fmt: skip
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    package: ModuleType = deepspeed
    return package
