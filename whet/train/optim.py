"""Optimisers by name, and the learning-rate schedule: a pure function of the step, so it has no state to lose."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch.nn import Parameter

from whet.config.train import Train
from whet.train.compact import compact_adamw
from whet.train.narrow import NarrowWeights

Optimizer = torch.optim.Optimizer | NarrowWeights
"""fp32 weights with gradients in `.grad`, or bf16 weights whose gradients the optimiser holds."""


def build_optimizer(model: torch.nn.Module, train: Train) -> Optimizer:
    """The optimiser of all weights of `model` that train; `train.weights` other than fp32 makes them bf16.

    Biases and norms, being vectors, are not decayed.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    embeddings = {p for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    if train.weights == "fp32":
        matrices, vectors = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
        return _adamw([*_group(matrices, train.weight_decay), *_group(vectors, 0.0)], train, exact=embeddings)

    def inner(parameter: Parameter, part: Parameter) -> torch.optim.Optimizer:
        decay = train.weight_decay if parameter.ndim >= 2 else 0.0
        return _adamw(_group([part], decay), train, exact={part} if parameter in embeddings else ())

    return NarrowWeights(parameters, inner, master=train.weights == "bf16_master", seed=train.seed)


def _group(parameters: Sequence[Parameter], decay: float) -> list[dict[str, Any]]:
    """One parameter group, or none where it would be empty."""
    return [{"params": list(parameters), "weight_decay": decay}] if parameters else []


def _adamw(groups: list[dict[str, Any]], train: Train, *, exact: Collection[Parameter]) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, 1711.05101). `exact` are the parameters whose state is never 8 bits."""
    if train.optimizer != "adamw":
        return compact_adamw(train.optimizer, groups, train, exact=exact)
    # One kernel over each parameter: a tenth of the time on a CPU, and no copies of the averages.
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=train.betas, eps=train.epsilon, fused=fused)


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
