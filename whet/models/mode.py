"""Dropout off for a while, and what else a trial of a model wants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from whet.models.head import product_dtype


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode; whoever trains it finds it as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def trying(model: torch.nn.Module) -> Iterator[None]:
    """Without gradient and dropout; weights of several types multiplied in the narrowest of them, as training does."""
    device = next(model.parameters()).device.type
    kinds = {weight.dtype for weight in model.parameters()} & {torch.float32, torch.bfloat16, torch.float16}
    narrow = min(kinds, key=lambda dtype: dtype.itemsize, default=torch.float32)
    with torch.no_grad(), evaluating(model), torch.autocast(device, narrow) if len(kinds) > 1 else nullcontext():
        yield


def agree(model: torch.nn.Module, ours: Tensor, theirs: Tensor, *, narrowly: float = 0.05) -> bool:
    """Whether what a trial gave is the same up to the rounding of the model's products; to within a part of `narrowly`
    where these are in 16 bits."""
    narrow = product_dtype(next(model.parameters())) in (torch.bfloat16, torch.float16)
    return bool((ours - theirs).norm() <= (narrowly if narrow else 1e-3) * theirs.norm())
