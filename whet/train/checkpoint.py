"""Checkpoints a killed run goes on from, bit for bit: weights, optimiser, random state, position. No pickles.

checkpoints/step-000200/  adapter/ or model/   optimizer.safetensors   random.safetensors   state.json
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from whet.errors import first_line
from whet.models.device import accelerator
from whet.models.parts import write_tensors
from whet.runs.files import read_json, replacing_folder, write_json, writing
from whet.train.narrow import NarrowWeights
from whet.train.optim import Optimizer
from whet.train.sharding.holding import Holding
from whet.train.state import load_state, state_of, unshared


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a training stands."""

    step: int
    """Optimiser steps done."""
    tokens: int = 0
    """Real tokens trained on so far, over all ranks."""
    best_value: float | None = None
    best_step: int | None = None
    scaler: Mapping[str, float] = field(default_factory=dict)
    """State of fp16's gradient scaler; empty in other precisions."""


class Checkpoints:
    """The checkpoints of one stage. A folder has its final name only once it is whole."""

    def __init__(self, root: Path, *, keep: int) -> None:
        self._root, self._keep = root, keep
        self._whole: dict[int, bool] = {}
        """What has been found out about each step's folder."""

    def folder(self, step: int) -> Path:
        return self._root / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint, ascending. One that a disk has damaged is none, which is said once."""
        named = sorted(int(p.name.removeprefix("step-")) for p in self._root.glob("step-*") if p.is_dir())
        return [step for step in named if self._is_whole(step)]

    def _is_whole(self, step: int) -> bool:
        if step not in self._whole:
            damage = _damage(self.folder(step))
            self._whole[step] = damage is None
            if damage is not None:
                print(f"{self.folder(step)}: left out, {damage}", file=sys.stderr)
        return self._whole[step]

    def save_parts(
        self, position: Position, save_model: Callable[[Path], None], holding: Holding, *, keeps: bool
    ) -> None:
        """The same checkpoint of weights and an optimiser in parts, by all ranks; one `keeps` it."""
        holding.rest()
        if keeps:
            self._save(position, save_model, lambda file: write_tensors(list(holding.state()), file))
        else:
            save_model(self.folder(position.step))
            write_tensors(list(holding.state()), None)

    def save(self, position: Position, save_model: Callable[[Path], None], optimizer: Optimizer) -> None:
        """Write a checkpoint, the model by `save_model(folder)`; then only the latest `keep` and the best one stay."""
        self._save(position, save_model, lambda file: save_file(optimizer_tensors(optimizer), file))

    def _save(
        self, position: Position, save_model: Callable[[Path], None], save_optimizer: Callable[[Path], None]
    ) -> None:
        with replacing_folder(self.folder(position.step)) as folder:
            save_model(folder)
            save_optimizer(folder / "optimizer.safetensors")
            save_file(random_tensors(), folder / "random.safetensors")
            write_json(folder / "state.json", asdict(position))
        self._whole[position.step] = True
        self.rotate(position.best_step)

    def rotate(self, best_step: int | None) -> None:
        """Remove all but the latest `keep` and the best; also what a kill kept from being removed."""
        keep = {best_step, *self.steps()[-self._keep :]}
        for step in self.steps():
            if step not in keep:
                with writing(self.folder(step)):
                    shutil.rmtree(self.folder(step))

    def latest(self) -> Position | None:
        """Position of the newest checkpoint, or None at the very start."""
        steps = self.steps()
        return Position(**read_json(self.folder(steps[-1]) / "state.json")) if steps else None

    def restore(self, step: int, optimizer: Optimizer) -> None:
        """Load optimiser and random state of a checkpoint; the model is loaded from its folder before."""
        load_optimizer(optimizer, load_file(self.folder(step) / "optimizer.safetensors"))
        load_random(load_file(self.folder(step) / "random.safetensors"))

    def restore_parts(self, step: int, holding: Holding) -> None:
        """The same where a rank takes its part of the optimiser's state."""
        with safe_open(self.folder(step) / "optimizer.safetensors", framework="pt") as file:
            holding.load_state({name: partial(_rows, file, name) for name in file.keys()})  # noqa: SIM118
        load_random(load_file(self.folder(step) / "random.safetensors"))


def _damage(folder: Path) -> str | None:
    """What is wrong with one of the safetensors below; their headers say how long they are."""
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{path.relative_to(folder)} is damaged ({first_line(error)})"
    return None


def _rows(file: Any, name: str, rows: slice | None) -> torch.Tensor:
    tensor: torch.Tensor = file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
    return tensor.clone()  # it lies in the file's pages: whoever reads it again would find it changed


def optimizer_tensors(optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as named tensors: `NUMBER.NAME`, NUMBER the parameter's place in the groups.

    For bf16 weights, what `NarrowWeights.tensors` names.
    """
    match optimizer:
        case NarrowWeights():
            return unshared(optimizer.tensors())
        case torch.optim.Optimizer():
            return unshared({
                f"{number}.{name}": value
                for number, parameter in enumerate(_parameters_of(optimizer))
                for name, value in state_of(optimizer, parameter).items()
            })  # fmt: skip


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Go on from `optimizer_tensors`."""
    match optimizer:
        case NarrowWeights():
            optimizer.load(tensors)
        case torch.optim.Optimizer():
            parameters = _parameters_of(optimizer)
            for key, value in tensors.items():
                number, name = key.split(".", 1)
                load_state(optimizer, parameters[int(number)], {name: value})


def _parameters_of(optimizer: torch.optim.Optimizer) -> Sequence[torch.nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def random_tensors() -> dict[str, torch.Tensor]:
    """State of the generators that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device := accelerator():
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def load_random(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if (device := accelerator()) and device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type])
