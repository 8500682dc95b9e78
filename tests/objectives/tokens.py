"""Two responses in float64 that every test of online RL's formulas works with, and random ones."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from whet.objectives.loss import Loss
from whet.objectives.policy import PolicyTokens

RATIOS = (1.5, 1.0, 0.5, 2.0, 1.0)
"""Of the two tokens of the first response, which was good (A = 1), and the three of the second, which was bad (-1)."""


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def tokens(**changed: torch.Tensor) -> PolicyTokens:
    logprobs = tensor(-1.0, -2.0, -3.0, -0.5, -1.5)
    made = PolicyTokens(
        logprobs=logprobs.requires_grad_(),
        old_logprobs=logprobs.detach() - tensor(*(math.log(ratio) for ratio in RATIOS)),
        advantages=tensor(1, 1, -1, -1, -1),
        rows=torch.tensor([0, 0, 1, 1, 1]),
        lengths=torch.tensor([2, 3]),
    )
    return replace(made, **changed)


def random_tokens(lengths: tuple[int, ...], seed: int, *, spread: float = 0.3) -> PolicyTokens:
    """Every field filled in; ratios e^(spread * normal)."""
    generator = torch.Generator().manual_seed(seed)
    num = sum(lengths)

    def normal() -> torch.Tensor:
        return torch.randn(num, generator=generator, dtype=torch.float64)

    rows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    advantages = torch.randn(len(lengths), generator=generator, dtype=torch.float64)[rows]
    logprobs = -2.0 - normal().abs()
    return PolicyTokens(
        logprobs=logprobs.requires_grad_(),
        old_logprobs=logprobs.detach() + spread * normal(),
        advantages=advantages,
        rows=rows,
        lengths=torch.tensor(lengths),
        reference_logprobs=logprobs.detach() + spread * normal(),
        sampler_logprobs=logprobs.detach() + spread * normal(),
        entropy=normal().abs().requires_grad_(),
    )


def part(whole: PolicyTokens, rows: list[int]) -> PolicyTokens:
    """Some of the responses, numbered anew."""
    chosen = torch.cat([(whole.rows == row).nonzero()[:, 0] for row in rows])
    numbers = torch.cat([torch.full((int(whole.lengths[row]),), n) for n, row in enumerate(rows)])
    names = ("logprobs", "old_logprobs", "advantages", "reference_logprobs", "sampler_logprobs", "entropy")
    fields = {name: getattr(whole, name)[chosen] for name in names if getattr(whole, name) is not None}
    return PolicyTokens(rows=numbers, lengths=whole.lengths[rows], **fields)


def means(loss: Loss) -> dict[str, float]:
    return {name: float(metric.total) / metric.count for name, metric in loss.metrics.items()}
