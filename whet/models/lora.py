"""A linear layer and its low-rank adapter in one step: y = x W' + s (x A') B', and the gradient of all of it.

peft computes the same from separate layers, and on the way casts its input to fp32 and back, scales, adds and casts
once more; each layer keeps a copy of the input for its gradient. Here the input is kept as it came, once for all the
layers that read it: a quarter of the activations' memory less.

Only what is plain is taken over (one live adapter, no dropout at work, a frozen linear layer under it); anything else
goes the way of peft.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import layer as peft_lora
from torch import Tensor

from whet.models.head import product_dtype


def fuse_adapters(model: torch.nn.Module) -> None:
    """Let the model's plain adapted layers compute in one step. Weights, names and saved files stay what they are."""
    for module in model.modules():
        if type(module) is peft_lora.Linear and type(_base(module)) is torch.nn.Linear:
            module.__class__ = FusedLinear


def _base(module: peft_lora.Linear) -> torch.nn.Linear:
    base: torch.nn.Linear = module.get_base_layer()
    return base


class FusedLinear(peft_lora.Linear):  # type: ignore[misc]
    """peft's adapted layer with another forward pass."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self._plain_adapter() if not args and not kwargs else None
        base = _base(self)
        dtype = product_dtype(x)
        if name is None or base.weight.dtype != dtype or base.weight.requires_grad:
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
        name: str = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_B[name].bias is not None:
            return None
        dropout = self.lora_dropout[name]
        idle = isinstance(dropout, torch.nn.Identity) or not dropout.training
        return name if idle else None


class _AdaptedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = torch.mm(rows, a.t())
        out = torch.nn.functional.linear(rows, weight, bias).addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(rows, weight, a, b, low)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, low = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        for_low = torch.mm(grad, b).mul_(ctx.scale)
        for_x = None
        if ctx.needs_input_grad[0]:
            for_x = torch.mm(grad, weight).addmm_(for_low, a).view(ctx.shape)
        return for_x, None, None, torch.mm(for_low.t(), rows), torch.mm(grad.t(), low).mul_(ctx.scale), None
