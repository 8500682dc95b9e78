"""Batches: rendered rows as padded tensors. Four shapes serve every objective; the first two stand here.

TokenBatch  likelihood over tokens (SFT)          PairBatch  two responses to one prompt (the DPO family)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.data.render import Rendered, RenderedPair


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """B rows, right-padded to L."""

    input_ids: Tensor
    """[B, L] int64."""
    attention_mask: Tensor
    """[B, L] int64, 1 on real tokens."""
    target_mask: Tensor
    """[B, L] bool, the trained tokens."""
    weights: Tensor
    """[N] float32, the weight of each trained token in row-major order, N = target_mask.sum()."""
    num_samples: int

    @property
    def num_tokens(self) -> int:
        return int(self.attention_mask.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch:
    """P pairs as 2P rows: row p is pair p's prompt with the chosen response, row P + p with the rejected one."""

    input_ids: Tensor
    """[2P, L] int64."""
    attention_mask: Tensor
    """[2P, L] int64."""
    target_mask: Tensor
    """[2P, L] bool, the response tokens."""
    lengths: Tensor
    """[2P] int64, response tokens per row."""
    indices: tuple[int, ...]
    """[P] position of each pair in the data set: the key of its cached reference log-probs."""

    @property
    def num_samples(self) -> int:
        return len(self.indices)

    @property
    def num_tokens(self) -> int:
        return int(self.attention_mask.sum())


def collate_tokens(rows: Sequence[Rendered], *, pad_id: int, device: torch.device) -> TokenBatch:
    """Pad rendered conversations. The first token of a row has nothing before it and is never a target."""
    ids, mask = _pad([row.ids for row in rows], pad_id)
    weights = torch.zeros(ids.shape, dtype=torch.float32)
    for b, row in enumerate(rows):
        weights[b, 1 : len(row.ids)] = torch.tensor(row.weights[1:], dtype=torch.float32)
    target = weights != 0
    return TokenBatch(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        target_mask=target.to(device),
        weights=weights[target].to(device),
        num_samples=len(rows),
    )


def collate_pairs(
    rows: Sequence[RenderedPair], indices: Sequence[int], *, pad_id: int, device: torch.device
) -> PairBatch:
    """Pad pairs, chosen rows first."""
    responses = [row.chosen_ids for row in rows] + [row.rejected_ids for row in rows]
    prompts = [row.prompt_ids for row in rows] * 2
    ids, mask = _pad([(*p, *r) for p, r in zip(prompts, responses, strict=True)], pad_id)
    target = torch.zeros(ids.shape, dtype=torch.bool)
    for b, (p, r) in enumerate(zip(prompts, responses, strict=True)):
        target[b, len(p) : len(p) + len(r)] = True
    return PairBatch(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        target_mask=target.to(device),
        lengths=torch.tensor([len(r) for r in responses], device=device),
        indices=tuple(indices),
    )


def _pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), longest), dtype=torch.int64)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[b, : len(row)] = 1
    return ids, mask
