"""What an optimiser keeps of a parameter, as named tensors and back: a checkpoint is made of nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def state_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Running averages, step counter and whatever else there is, as tensors on the CPU."""
    return {
        name: value.detach().cpu().contiguous() if isinstance(value, Tensor) else torch.tensor(value)
        for name, value in optimizer.state[parameter].items()
    }


def load_state(optimizer: torch.optim.Optimizer, parameter: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Put `state_of`'s tensors back, into what the optimiser has already made: it may be memory of a special kind."""
    state = optimizer.state[parameter]
    on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    for name, value in tensors.items():
        match state.get(name):
            case Tensor() as made:
                made.copy_(value)
            case int():
                state[name] = int(value)
            case _:
                # torch's AdamW counts its steps on the CPU, unless it is one kernel on the device.
                state[name] = value if name == "step" and not on_device else value.to(parameter.device)


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each with memory of its own, as safetensors wants it: some share a table of constants."""
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = tensor.data_ptr()
        own[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return own
