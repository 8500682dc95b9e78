"""Batches: packed rows with what an objective needs to know of them. Four shapes serve every offline objective.

TokenBatch    likelihood over tokens (SFT)
GroupBatch    responses to prompts: pairs (the DPO family), responses with stored numbers
RatingBatch   single responses called good or bad, each with another record's response for the KL estimate (KTO)
RankingBatch  responses in an order (reward models)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from whet.data.pack import pack_groups, pack_rows
from whet.data.rendered import Rendered, RenderedGroup
from whet.schema.packed import Packed

if TYPE_CHECKING:
    from whet.data.pictures import PictureReader


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    packed: Packed
    weights: Tensor
    """[N] float32, the weight of each target."""
    num_samples: int

    @property
    def num_tokens(self) -> int:
        return self.packed.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupBatch:
    """G prompts with R responses in all; the rows of a prompt stand together, the chosen one of a pair first."""

    packed: Packed
    lengths: Tensor
    """[R] int64, tokens of each response."""
    groups: Tensor
    """[R] int64, the prompt of each response, 0 to G - 1."""
    values: Tensor
    """[R] float32, what the data says of each response; NaN where it says nothing."""
    indices: tuple[int, ...]
    """[G] place of each prompt in the data set: the key of its cached reference log-probs."""

    @property
    def num_samples(self) -> int:
        return len(self.indices)

    @property
    def num_tokens(self) -> int:
        return self.packed.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingBatch:
    rated: GroupBatch
    """One response to each prompt; `values` 1 good, 0 bad."""
    mismatched: GroupBatch
    """The same prompts, each with the response of another record."""

    @property
    def num_samples(self) -> int:
        return self.rated.num_samples

    @property
    def num_tokens(self) -> int:
        return self.rated.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingBatch:
    """G prompts with R responses in all."""

    packed: Packed
    groups: Tensor
    """[R] int64, the prompt of each response."""
    ranks: Tensor
    """[R] float32, 1 the best."""
    margins: Tensor
    """[R] float32; the better of two responses should lead by the difference of theirs."""
    num_samples: int

    @property
    def num_tokens(self) -> int:
        return self.packed.num_tokens


def collate_tokens(
    rows: Sequence[Rendered], *, device: torch.device, reader: PictureReader | None = None
) -> TokenBatch:
    """`reader` loads the rows' pictures, here and below."""
    packed, weights = pack_rows(rows, reader)
    return TokenBatch(packed=packed.to(device), weights=weights.to(device), num_samples=len(rows))


def collate_groups(
    rows: Sequence[RenderedGroup],
    indices: Sequence[int],
    *,
    device: torch.device,
    reader: PictureReader | None = None,
) -> GroupBatch:
    values = [value for row in rows for value in row.values or [float("nan")] * len(row.response_ids)]
    return GroupBatch(
        packed=pack_groups(rows, reader).to(device),
        lengths=torch.tensor([len(ids) for row in rows for ids in row.response_ids], device=device),
        groups=torch.tensor([n for n, row in enumerate(rows) for _ in row.response_ids], device=device),
        values=torch.tensor(values, dtype=torch.float32, device=device),
        indices=tuple(indices),
    )


def collate_ratings(
    rows: Sequence[RenderedGroup],
    others: Sequence[RenderedGroup],
    indices: Sequence[int],
    *,
    max_length: int,
    device: torch.device,
    reader: PictureReader | None = None,
) -> RatingBatch:
    """`others[i]` is the record that lends row i its mismatched response.

    Each of the two fits into `max_length` tokens, but one's prompt with the other's response need not: the response is
    cut at its end then, as a row's own would have been.
    """
    strangers = [_mismatched(row, other, max_length) for row, other in zip(rows, others, strict=True)]
    return RatingBatch(
        rated=collate_groups(rows, indices, device=device, reader=reader),
        mismatched=collate_groups(strangers, indices, device=device, reader=reader),
    )


def _mismatched(row: RenderedGroup, other: RenderedGroup, max_length: int) -> RenderedGroup:
    """The row's prompt with the other's response, at no more than `max_length` tokens."""
    room = max_length - len(row.prompt_ids)
    return replace(row, response_ids=tuple(ids[:room] for ids in other.response_ids), values=())


def collate_rankings(
    rows: Sequence[RenderedGroup], *, device: torch.device, reader: PictureReader | None = None
) -> RankingBatch:
    """Rankings and preferences alike: a preference is a ranking of two, and may know by how much."""
    orders = [_ranks_and_margins(row) for row in rows]
    return RankingBatch(
        packed=pack_groups(rows, reader).to(device),
        groups=torch.tensor([n for n, row in enumerate(rows) for _ in row.response_ids], device=device),
        ranks=torch.tensor([rank for ranks, _ in orders for rank in ranks], dtype=torch.float32, device=device),
        margins=torch.tensor([m for _, margins in orders for m in margins], dtype=torch.float32, device=device),
        num_samples=len(rows),
    )


def _ranks_and_margins(row: RenderedGroup) -> tuple[Sequence[float], Sequence[float]]:
    """A preference's values are (margin, 0) or nothing; a ranking's are ranks, which begin at 1."""
    if not row.values:
        return (1.0, 2.0), (0.0, 0.0)
    if row.values[-1] == 0.0:
        return (1.0, 2.0), row.values
    return row.values, [0.0] * len(row.values)
