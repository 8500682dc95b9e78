"""Optimisers by name, and the learning-rate schedule: a pure function of the step, so it has no state to lose."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import Parameter

from whet.config.train import Train
from whet.train.compact import compact_adamw
from whet.train.narrow import NarrowWeights

Optimizer = torch.optim.Optimizer | NarrowWeights
"""fp32 weights with gradients in `.grad`, or bf16 weights whose gradients the optimiser holds."""


@runtime_checkable
class HasApart(Protocol):
    """A module of which a part learns beside the rest and not with it."""

    def apart(self) -> Mapping[Parameter, float]:
        """Parameters of that part, each with its learning rate over the plan's."""
        ...


def build_optimizer(model: torch.nn.Module, train: Train) -> Optimizer:
    """The optimiser of all weights of `model` that train; `train.weights` other than fp32 makes them bf16.

    Biases and norms, being vectors, are not decayed. A group says by `pace` how much of the schedule's rate is its own,
    and by `apart` whether it is clipped by itself.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    embeddings = {p for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    paces = model.apart() if isinstance(model, HasApart) else {}

    def group(together: Sequence[Parameter]) -> dict[str, Any]:
        first = together[0]
        decay = train.weight_decay if first.ndim >= 2 else 0.0
        return {"weight_decay": decay, "pace": paces.get(first, 1.0), "apart": first in paces}

    if train.weights == "fp32":
        kinds: dict[tuple[bool, bool], list[Parameter]] = {}
        for parameter in sorted(parameters, key=lambda p: p.ndim < 2):  # matrices, then vectors, in their order
            kinds.setdefault((parameter.ndim < 2, parameter in paces), []).append(parameter)
        return _adamw([{"params": own, **group(own)} for own in kinds.values()], train, exact=embeddings)

    def inner(parameter: Parameter, part: Parameter) -> torch.optim.Optimizer:
        exact = {part} if parameter in embeddings else ()
        return _adamw([{"params": [part], **group([parameter])}], train, exact=exact)

    return NarrowWeights(parameters, inner, master=train.weights == "bf16_master", seed=train.seed)


def clip(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Scale gradients to at most `max_norm`, what stands apart by itself. The norm of all, before clipping."""
    parts: dict[bool, list[Parameter]] = {}
    for group in optimizer.param_groups:
        parts.setdefault(group["apart"], []).extend(group["params"])
    norms = [torch.nn.utils.clip_grad_norm_(part, max_norm) for part in parts.values()]
    whole: Tensor = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    return whole


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
