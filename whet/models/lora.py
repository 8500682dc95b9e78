"""A linear layer and its low-rank adapter in one step: y = x W' + s (x A') B', and the gradient of all of it.

peft computes the same from separate layers, and on the way casts its input to fp32 and back, scales, adds and casts
once more; each layer keeps a copy of the input for its gradient. Here the input is kept as it came, once for all the
layers that read it: a quarter of the activations' memory less.

Only what is plain is taken over (one live adapter, no dropout at work, a linear layer under it that is frozen, its bias
included); anything else goes the way of peft.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from peft.tuners.lora import layer as peft_lora
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

from whet.models.activations import products_are_kept
from whet.models.four_bit import FourBitLinear, dense, product_type
from whet.models.head import product_dtype


def fuse_adapters(model: torch.nn.Module) -> None:
    """Let the model's plain adapted layers compute in one step. Weights, names and saved files stay what they are."""
    for module in model.modules():
        if is_adapted_linear(module) and not isinstance(module, FusedLinear):
            module.__class__ = _fused(type(module))  # type: ignore[arg-type]


def is_adapted_linear(module: torch.nn.Module) -> bool:
    """Whether it is peft's low-rank adapter on a linear layer, a plain one or one in 4 bits."""
    if isinstance(module, FusedLinear):
        return True
    if type(module) is peft_lora.Linear:
        return type(_base(module)) is torch.nn.Linear
    return isinstance(module, LoraLayer) and isinstance(_base(module), FourBitLinear)


def _base(module: LoraLayer) -> torch.nn.Linear:
    base: torch.nn.Linear = module.get_base_layer()
    return base


class FusedLinear(torch.nn.Module):
    """A mixin before peft's adapted layer: another forward pass."""

    disable_adapters: bool
    merged: bool
    active_adapters: list[str]
    lora_A: Any
    lora_B: Any
    lora_dropout: Any
    lora_variant: dict[str, Any]
    scaling: dict[str, float]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self._plain_adapter() if not args and not kwargs else None
        base = _base(self)
        dtype = product_dtype(x)
        frozen = not any(parameter.requires_grad for parameter in base.parameters())  # a bias may train (`lora_only`)
        if name is None or product_type(base.weight) != dtype or not frozen:
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        a, b = self.lora_A[name].weight.to(dtype), self.lora_B[name].weight.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            out = _AdaptedProduct.apply(  # type: ignore[no-untyped-call]
                x.to(dtype), base.weight, base.bias, a, b, self.scaling[name]
            )
        return out

    def _plain_adapter(self) -> str | None:
        """The one adapter at work, where it is an ordinary one."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_B[name].bias is not None:
            return None
        dropout = self.lora_dropout[name]
        idle = isinstance(dropout, torch.nn.Identity) or not dropout.training
        return name if idle else None


@cache
def _fused(kind: type[LoraLayer]) -> type[LoraLayer]:
    return type(f"Fused{kind.__name__}", (FusedLinear, kind), {})


class _AdaptedProduct(torch.autograd.Function):
    """A weight in 4 bits is dequantised in each pass; one that is not is itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = torch.mm(rows, a.t())
        out = torch.nn.functional.linear(rows, dense(weight), bias)
        if products_are_kept():
            out = torch.addmm(out, low, b.t(), alpha=scale)
        else:
            out.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(rows, a, b, low)
        ctx.weight, ctx.scale, ctx.shape = weight, scale, x.shape  # the weight is frozen
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, a, b, low = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        for_low = torch.mm(grad, b).mul_(ctx.scale)
        for_x = None
        if ctx.needs_input_grad[0]:
            for_x = torch.mm(grad, dense(ctx.weight)).addmm_(for_low, a).view(ctx.shape)
        # Both with the few rows first: oneDNN is faster at it than the other way round.
        return for_x, None, None, torch.mm(for_low.t(), rows), torch.mm(low.t(), grad).mul_(ctx.scale).t(), None
