"""Padded rows in parts of similar length: a short row beside a long one costs as much as the long one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from whet.models.inputs import Inputs


def parts_of(places: Tensor, room: int) -> list[Tensor]:
    """Rows [R, L] (-1 is padding on the right) as parts of at most `room` tokens, padding included; a row that is
    longer stands alone."""
    lengths = (places >= 0).sum(dim=1)
    parts: list[list[int]] = []
    for row in lengths.argsort(descending=True, stable=True).tolist():
        if not parts or (len(parts[-1]) + 1) * int(lengths[parts[-1][0]]) > room:
            parts.append([])
        parts[-1].append(row)
    return [places[part, : int(lengths[part[0]])] for part in parts]


def through_parts(layers: torch.nn.Module, inputs: Inputs, parts: Sequence[Tensor]) -> Tensor:
    """[T, H], what the layers make of the packed row's tokens, a part after the other."""
    device = inputs.ids.device
    hidden = [
        layers(**inputs.rows(part.to(device)), use_cache=False).last_hidden_state.flatten(0, 1) for part in parts
    ]
    return torch.cat(hidden)[_cells(parts, len(inputs.ids)).to(device)]


def _cells(parts: Sequence[Tensor], num: int) -> Tensor:
    """[T], where each token stands among the cells of all parts, one part behind the other. A prompt's stand in several
    rows and are the same in all: the first is taken."""
    places = torch.cat([part.flatten() for part in parts])
    order = (places >= 0).nonzero(as_tuple=True)[0].flip(0)
    cells = torch.full((num,), -1, dtype=torch.int64)
    cells[places[order]] = order
    return cells
