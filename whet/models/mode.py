"""Dropout off for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode; whoever trains it finds it as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
