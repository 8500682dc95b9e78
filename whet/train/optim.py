"""Optimiser and learning-rate schedule; the rate is a pure function of the step, so it has no state to lose."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from whet.config.train import Train


def build_optimizer(parameters: Sequence[torch.nn.Parameter], train: Train) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 1711.05101); biases and norms, being vectors, are not decayed."""
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=train.learning_rate, betas=train.betas, eps=train.epsilon
    )


def warmup_steps(train: Train, num_steps: int) -> int:
    return train.warmup_steps if train.warmup_steps is not None else math.ceil(train.warmup_ratio * num_steps)


def learning_rate(step: int, num_steps: int, train: Train) -> float:
    """Rate of 0-based `step`: a linear rise over the warm-up that is never zero, then the chosen schedule.

    The last step still trains: the schedule reaches its floor one step after the end.
    """
    warmup = warmup_steps(train, num_steps)
    if step < warmup:
        return train.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, num_steps - warmup)
    match train.schedule:
        case "constant":
            share = 1.0
        case "linear":
            share = 1.0 - done
        case "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * done))
    return train.learning_rate * (train.min_lr_ratio + (1.0 - train.min_lr_ratio) * share)
