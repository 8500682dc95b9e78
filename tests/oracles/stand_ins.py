"""What TRL's loss functions ask of `self` and of a model, on plain tensors: no trainer and no network runs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from whet.objectives.pairwise import PairLogprobs

PROMPT = 3
"""Tokens of every prompt."""


def trainer(**settings: Any) -> SimpleNamespace:
    """A `self` with one process, no auxiliary loss and empty metrics."""
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, num_processes=1,
        parallelism_config=None,
    )  # fmt: skip
    return SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator, aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1, **settings,
    )  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """Rows of token log-probs behind prompts of PROMPT tokens, padded to one width, as a model would give them."""

    logprobs: torch.Tensor
    """[R, T], a leaf; what stands behind a response's end is not its own."""
    lengths: torch.Tensor
    """[R] int64."""

    @staticmethod
    def random(lengths: list[int], seed: int) -> Tokens:
        generator = torch.Generator().manual_seed(seed)
        values = -3.0 * torch.rand(len(lengths), max(lengths), generator=generator) - 0.05
        return Tokens(values.requires_grad_(), torch.tensor(lengths))

    @property
    def mask(self) -> torch.Tensor:
        """[R, T] bool."""
        return torch.arange(self.logprobs.shape[1])[None, :] < self.lengths[:, None]

    @property
    def sums(self) -> torch.Tensor:
        return (self.logprobs * self.mask).sum(1)

    @property
    def completion_mask(self) -> torch.Tensor:
        """[R, PROMPT + T] int64."""
        return torch.cat([torch.zeros(len(self.lengths), PROMPT, dtype=torch.long), self.mask.long()], dim=1)

    def model(self, **inputs: Any) -> SimpleNamespace:
        """Stands for the network: its fused head's outputs, shifted by one and zero where nothing is labelled."""
        before = torch.zeros(len(self.lengths), PROMPT - 1)
        logprobs = torch.cat([before, self.logprobs * self.mask], dim=1)
        labelled = torch.cat([before.bool(), self.mask], dim=1)
        return SimpleNamespace(
            log_probs=logprobs, entropy=torch.zeros_like(logprobs), mean_logits=torch.zeros_like(logprobs),
            is_top1=torch.zeros_like(labelled), label_mask=labelled,
        )  # fmt: skip

    def inputs(self) -> dict[str, torch.Tensor]:
        """The ids do not matter to a model that knows its answers."""
        mask = self.completion_mask
        return {
            "input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask,
        }  # fmt: skip

    def pairs(self, reference: torch.Tensor) -> PairLogprobs:
        """The rows as pairs, first half chosen; `reference` [R] in the same order."""
        chosen, rejected = self.sums.chunk(2)
        reference_chosen, reference_rejected = reference.chunk(2)
        chosen_length, rejected_length = self.lengths.chunk(2)
        return PairLogprobs(
            chosen=chosen, rejected=rejected, reference_chosen=reference_chosen,
            reference_rejected=reference_rejected, chosen_length=chosen_length, rejected_length=rejected_length,
        )  # fmt: skip


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, *leaves: torch.Tensor) -> None:
    """Value and gradient within 1e-5."""
    assert abs(ours.item() - theirs.item()) <= 1e-5 * max(1.0, abs(theirs.item()))
    for one, two in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        assert float(two.norm()) > 0 and float((one - two).norm() / two.norm()) < 1e-5
