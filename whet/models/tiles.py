"""Rows of a matrix a few at a time: what is made of them on a CPU then stays in its caches."""

from __future__ import annotations

from torch import Tensor

TILE = 1 << 18
"""Numbers of a tile: 1 MiB in fp32, half of the second-level cache of a server's core."""


def row_tiles(rows: Tensor) -> list[slice]:
    """Slices that cover the rows of [N, n]; one of all where a device hides its caches."""
    step = max(1, TILE // rows.shape[-1]) if rows.device.type == "cpu" else max(1, len(rows))
    return [slice(start, start + step) for start in range(0, len(rows), step)]
