"""Rows of a matrix a few at a time: what is made of them on a CPU then stays in its caches."""

from __future__ import annotations

from torch import Tensor


def row_tiles(rows: Tensor, numbers: int) -> list[slice]:
    """Slices of about so many numbers that cover the rows of [N, n]; one of all where a device hides its caches."""
    step = max(1, numbers // rows.shape[-1]) if rows.device.type == "cpu" else max(1, len(rows))
    return [slice(start, start + step) for start in range(0, len(rows), step)]
