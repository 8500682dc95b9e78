"""RMSNorm with a backward pass of its own (Zhang & Sennrich, 1910.07467): half the time, a third of the memory.

Autograd keeps an fp32 copy of every input and goes through it a dozen times; here the input is kept as it came, which
the residual stream does anyway, and one number a row. Frozen weights only: a trained one goes the way of transformers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from whet.models.tiles import row_tiles

TILE = 1 << 20
"""Numbers that are fp32 at once on a CPU: its operations are so light here that more of them cost more than a cache
that is too small."""
SIZES = [1e-3, 1.0, 1e4]
"""Of the rows that a norm is tried with."""


def fuse_norms(model: torch.nn.Module) -> None:
    """Let the model's RMS norms compute in one step. Which they are is tried out, not looked up by name alone."""
    for module in model.modules():
        kind = type(module)
        if kind.__name__.endswith("RMSNorm") and not isinstance(module, FusedNorm):
            shift = _shift(module)
            if shift is not None:
                module.__class__ = _fused(kind, shift)  # type: ignore[arg-type]


class FusedNorm(torch.nn.Module):
    """A mixin before a model's own norm: y = x / rms(x) * (weight + shift)."""

    weight: Tensor
    shift: float

    def forward(self, x: Tensor) -> Tensor:
        if not self.fuses(x):
            theirs: Tensor = super().forward(x)
            return theirs
        out: Tensor = _Normalised.apply(x, self.gain(), self.epsilon)  # type: ignore[no-untyped-call]
        return out

    def fuses(self, x: Tensor) -> bool:
        """Whether this is what is computed for x."""
        # transformers computes in fp32 whatever comes, and gives back the wider of the two types.
        plain = not self.weight.requires_grad and torch.promote_types(x.dtype, self.weight.dtype) == x.dtype
        return plain and x.dtype != torch.float64

    def gain(self) -> Tensor:
        """[n] in fp32."""
        return self.weight.float() + self.shift

    @property
    def epsilon(self) -> float:
        epsilon = _epsilon(self)
        assert epsilon is not None, "every norm that was fused has one"
        return epsilon


@cache
def _fused(kind: type[torch.nn.Module], shift: float) -> type[torch.nn.Module]:
    return type(f"Fused{kind.__name__}", (FusedNorm, kind), {"shift": shift})


def _shift(module: torch.nn.Module) -> float | None:
    """What the norm adds to its weight: 0, or 1 as Gemma does; None where it computes something else."""
    weight, epsilon = getattr(module, "weight", None), _epsilon(module)
    if not isinstance(weight, Tensor) or weight.dim() != 1 or epsilon is None or len(list(module.parameters())) != 1:
        return None
    # Small rows show another epsilon, large ones a bound.
    x = torch.linspace(-2.0, 3.0, len(weight), device=weight.device) * weight.new_tensor(SIZES).float()[:, None]
    with torch.no_grad():
        theirs = module(x).float()
        for shift in (0.0, 1.0):
            ours = _Normalised.apply(x, weight.float() + shift, epsilon)  # type: ignore[no-untyped-call]
            if torch.allclose(ours, theirs, rtol=1e-2, atol=1e-6):
                return shift
    return None


def _epsilon(module: torch.nn.Module) -> float | None:
    """Under the names transformers' models give it."""
    epsilon: float | None = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return epsilon


class _Normalised(torch.autograd.Function):
    """x [..., n] and gain [n] in fp32; sums in fp32, the result in the type of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out, scale = torch.empty_like(rows), gain.new_empty(len(rows), 1)
        for tile in row_tiles(rows, TILE):
            wide = rows[tile].to(torch.float32, copy=True)
            scale[tile] = normalise_(wide, gain, epsilon)
            out[tile] = wide
        ctx.save_for_backward(x, gain, scale)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, gain, scale = ctx.saved_tensors
        rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, x.shape[-1])
        out = torch.empty_like(rows)
        for tile in row_tiles(rows, TILE):
            wide = grads[tile].to(torch.float32, copy=True)
            out[tile] = unnormalise_(wide, rows[tile].float(), gain, scale[tile])
        return out.view(x.shape), None, None


def normalise_(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """Replace x [..., n] in fp32 by x r gain. Returns r = 1 / rms(x), [..., 1]."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    scale: Tensor = size.add_(epsilon).rsqrt_()
    x.mul_(scale).mul_(gain)
    return scale


def unnormalise_(grad: Tensor, x: Tensor, gain: Tensor, scale: Tensor) -> Tensor:
    """Turn the gradient of x r gain into that of x, in its place: r (g - x r^2 mean(g x)) with g = grad gain."""
    g = grad.mul_(gain)
    drift = (g * x).mean(dim=-1, keepdim=True).mul_(scale).mul_(scale).neg_()
    return g.addcmul_(x, drift).mul_(scale)
