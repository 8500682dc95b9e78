"""silu(gate) * up in one autograd step (SwiGLU, Shazeer, 2002.05202), computed anew in the backward pass.

Autograd would keep silu(gate) as well, the width of the feed-forward layer once more for every token and layer: a tenth
of a decoder's activations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from whet.models.four_bit import dense_shape, product_type
from whet.models.tiles import row_tiles

TILE = 1 << 18
"""Numbers of a tile: 1 MiB in fp32, half of the second-level cache of a server's core."""
PARTS = ("gate_proj", "up_proj", "down_proj")
LOUD, LOUD_FP16 = 1024.0, 64.0
"""What a trial's gate and other half reach: beyond every bound that is put on them (7 to 16), and the product of the
two within the type."""


def fuse_gates(model: torch.nn.Module) -> None:
    """Let the model's gated feed-forward layers compute in one step what lies between their products.

    Which they are is tried out, not looked up by name alone.
    """
    for module in model.modules():
        kind = type(module)
        if kind.__name__.endswith("MLP") and not isinstance(module, FusedGate) and _is_gated(module):
            module.__class__ = _fused(kind)  # type: ignore[arg-type]


class FusedGate(torch.nn.Module):
    """A mixin before a model's own feed-forward layer: down(silu(gate(x)) * up(x))."""

    gate_proj: torch.nn.Module
    up_proj: torch.nn.Module
    down_proj: torch.nn.Module

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if gate.dtype != up.dtype:  # an adapter of a wider type on one of them
            gate, up = (y.to(torch.promote_types(gate.dtype, up.dtype)) for y in (gate, up))
        out: Tensor = self.down_proj(_Gated.apply(gate, up))  # type: ignore[no-untyped-call]
        return out


@cache
def _fused(kind: type[torch.nn.Module]) -> type[torch.nn.Module]:
    return type(f"Fused{kind.__name__}", (FusedGate, kind), {})


def _is_gated(module: torch.nn.Module) -> bool:
    children = dict(module.named_children())
    if not set(PARTS) <= set(children):
        return False
    gate, up, down = (children[part] for part in PARTS)
    weight = getattr(gate, "weight", None)
    if not isinstance(weight, Tensor) or weight.device.type == "meta" or not product_type(weight).is_floating_point:
        return False  # packed, or quantised in a way that is not known here
    x = torch.linspace(-2.0, 3.0, dense_shape(weight)[1], dtype=product_type(weight), device=weight.device)
    with torch.no_grad():
        x = soft_and_loud(gate, up, x)
        ours = down(silu(gate(x)) * up(x))
        # Infinite numbers would be equal whatever lies behind them.
        return bool(ours.isfinite().all()) and torch.equal(module(x), ours)


def soft_and_loud(gate: Callable[[Tensor], Tensor], up: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """[3, n] of x [n]: itself, and with either sign so large that a bound on the gate or on the other half shows."""
    reached = min(float(half(x[None]).abs().max()) for half in (gate, up))
    loud = x * ((LOUD_FP16 if x.dtype == torch.float16 else LOUD) / max(reached, 1e-3))
    return torch.stack([x, loud, -loud])


class _Gated(torch.autograd.Function):
    """gate and up [..., n]."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        gates, ups = gate.reshape(-1, gate.shape[-1]), up.reshape(-1, gate.shape[-1])
        out = torch.empty_like(gates)
        for tile in row_tiles(gates, TILE):
            torch.mul(silu(gates[tile]), ups[tile], out=out[tile])
        return out.view(gate.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gates, ups, grads = (x.reshape(-1, x.shape[-1]) for x in (*ctx.saved_tensors, grad))
        for_gate, for_up = torch.empty_like(gates), torch.empty_like(ups)
        for tile in row_tiles(gates, TILE):
            torch.mul(grads[tile], silu(gates[tile]), out=for_up[tile])
            torch.ops.aten.silu_backward.grad_input(grads[tile] * ups[tile], gates[tile], grad_input=for_gate[tile])
        return for_gate.view(grad.shape), for_up.view(grad.shape)
