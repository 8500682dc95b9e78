"""Tokens laid end to end as the padded rows [R, T] that TRL and verl work on."""

from __future__ import annotations

import torch

from whet.objectives.policy import PolicyTokens


def positions(rows: torch.Tensor) -> torch.Tensor:
    """[N], place of each token in its row."""
    first = torch.cat([torch.tensor([True]), rows[1:] != rows[:-1]]).nonzero()[:, 0]
    return torch.arange(len(rows)) - first[rows]


def padded(values: torch.Tensor, rows: torch.Tensor, lengths: torch.Tensor, *, fill: float = 0.0) -> torch.Tensor:
    """[N] -> [R, T]; the gradient finds its way back."""
    empty = values.new_full((len(lengths), int(lengths.max())), fill)
    return empty.index_put((rows, positions(rows)), values)


def mask(lengths: torch.Tensor) -> torch.Tensor:
    """[R, T] int64."""
    return (torch.arange(int(lengths.max()))[None, :] < lengths[:, None]).long()


def of(tokens: PolicyTokens, name: str, *, fill: float = 0.0) -> torch.Tensor:
    """A field of the tokens, padded."""
    return padded(getattr(tokens, name), tokens.rows, tokens.lengths, fill=fill)
