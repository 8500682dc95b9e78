"""A module in the place of bitsandbytes: the same classes, the same state of the same types, arithmetic of its own.

State of a parameter, as bitsandbytes 0.50 keeps it: `step` an int; `state1`, `state2` fp32, or from 4096 numbers on
uint8, with an fp32 scale for each block of 256 (`absmax1`, `absmax2`) and tables that all share (`qmap1`, `qmap2`).
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

BLOCK, LEAST = 256, 4096


class _AdamW(torch.optim.Optimizer):
    bits, paged, devices = 32, False, ("cpu",)

    def __init__(self, params: Any, lr: float = 1e-3, betas: Any = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._tables = {"qmap1": torch.linspace(-1, 1, 256), "qmap2": torch.linspace(0, 1, 256)}

    def get_state_buffer(self, p: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        buffer = torch.zeros_like(p, dtype=dtype)
        buffer.is_paged = self.paged and p.numel() >= 100_000  # type: ignore[attr-defined]
        return buffer

    def init_state(self, group: Any, p: Tensor, number: int, place: int) -> None:
        state: dict[str, Any] = {"step": 0}
        narrow = self.bits == 8 and p.numel() >= LEAST
        for name in ("1", "2"):
            state[f"state{name}"] = self.get_state_buffer(p, torch.uint8 if narrow else torch.float32)
            if narrow:
                state[f"qmap{name}"] = self._tables[f"qmap{name}"]
                state[f"absmax{name}"] = torch.zeros((p.numel() + BLOCK - 1) // BLOCK)
        self.state[p] = state

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for number, group in enumerate(self.param_groups):
            for place, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                if p.device.type not in self.devices:
                    raise NotImplementedError(f"no kernel for {p.device.type}")
                if not self.state[p]:
                    self.init_state(group, p, number, place)
                self._update(group, p, self.state[p])

    def _update(self, group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> None:
        state["step"] += 1
        first, second = group["betas"]
        m = _read(state, "1").mul(first).add(p.grad, alpha=1 - first)
        v = _read(state, "2").mul(second).addcmul(p.grad, p.grad, value=1 - second)
        _write(state, "1", m)
        _write(state, "2", v)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        scale = (1 - second ** state["step"]) ** 0.5
        p.addcdiv_(m, v.sqrt() / scale + group["eps"], value=-group["lr"] / (1 - first ** state["step"]))


def _read(state: dict[str, Any], which: str) -> Tensor:
    kept: Tensor = state[f"state{which}"]
    if kept.dtype == torch.float32:
        return kept
    scale = state[f"absmax{which}"].repeat_interleave(BLOCK)[: kept.numel()].view(kept.shape)
    return state[f"qmap{which}"][kept.long()] * scale


def _write(state: dict[str, Any], which: str, value: Tensor) -> None:
    kept: Tensor = state[f"state{which}"]
    if kept.dtype == torch.float32:
        kept.copy_(value)
        return
    missing = -value.numel() % BLOCK
    blocks = torch.nn.functional.pad(value.reshape(-1), (0, missing)).view(-1, BLOCK)
    scale = blocks.abs().amax(dim=1)
    table = state[f"qmap{which}"]
    places = torch.bucketize(blocks / scale.clamp_min(1e-30).unsqueeze(1), table).clamp_max(255)
    state[f"absmax{which}"].copy_(scale)
    kept.copy_(places.view(-1)[: value.numel()].view(kept.shape))


class AdamW8bit(_AdamW):
    bits = 8


class PagedAdamW(_AdamW):
    paged = True


class PagedAdamW8bit(_AdamW):
    bits, paged = 8, True


def standin() -> ModuleType:
    module = ModuleType("bitsandbytes")
    module.__version__ = "0"
    module.optim = SimpleNamespace(  # type: ignore[attr-defined]
        AdamW8bit=AdamW8bit, PagedAdamW=PagedAdamW, PagedAdamW8bit=PagedAdamW8bit
    )
    return module
