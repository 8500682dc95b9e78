"""The accelerator of this machine: CUDA, MPS, Intel's XPU, or what a package has told torch of (Ascend's NPU).

torch finds at most one kind. What differs between kinds beyond a tensor's place is asked of the device's module here.
"""

from __future__ import annotations

import torch

CPU = torch.device("cpu")


def accelerator() -> torch.device | None:
    """The accelerator that torch finds here."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def has_own_memory(device: torch.device) -> bool:
    """Whether its memory is not the host's. An MPS device shares that."""
    return device.type not in ("cpu", "mps")


def computes_bf16(device: torch.device) -> bool:
    """Whether the device says that it has instructions for bf16; what a CPU has is another matter."""
    if not has_own_memory(device):
        return False
    module = torch.get_device_module(device)
    if device.type in ("cuda", "xpu"):  # which else count what they emulate, several times slower than fp32 or fp16
        return bool(module.is_bf16_supported(including_emulation=False))
    return bool(module.is_bf16_supported())


def give_back_cached() -> None:
    """Memory that the allocator of the accelerator keeps for later goes back to its driver."""
    device = accelerator()
    if device is not None:
        torch.get_device_module(device).empty_cache()


def move(model: torch.nn.Module, device: torch.device) -> None:
    """To the device. Weights that are one stay one: for some kinds of devices torch makes new ones, of each its own."""
    places: dict[int, list[tuple[torch.nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            places.setdefault(id(parameter), []).append((module, name))
    model.to(device)
    for (first, name), *others in places.values():
        for module, other in others:
            module._parameters[other] = first._parameters[name]
