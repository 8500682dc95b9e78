"""How long records are, as numbers to print."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the records are, prompt and answers together."""

    unit: str
    """`characters` or `tokens`."""
    sizes: NDArray[np.int64]
    """Sorted."""

    def quantile(self, share: float) -> int:
        """The size that this share of the records does not exceed."""
        return int(self.sizes[min(len(self.sizes) - 1, int(share * len(self.sizes)))])

    def histogram(self) -> list[tuple[int, int, int]]:
        """(from, below, records) in bins that double in width."""
        edges = [0, 16]
        while edges[-1] <= self.sizes[-1]:
            edges.append(edges[-1] * 2)
        below = np.searchsorted(self.sizes, edges).tolist()
        bins = [(*edge, to - since) for edge, (since, to) in zip(pairwise(edges), pairwise(below), strict=True)]
        first = next(index for index, (_, _, count) in enumerate(bins) if count)
        return bins[first:]
