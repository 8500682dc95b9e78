"""pass@k without bias: the chance that at least one of k answers is right (Chen et al., 2107.03374, equation 1).

>>> round(pass_at_k(4, 1, 2), 3)
0.5
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


def pass_at_k(num: int, right: int, k: int) -> float:
    """1 - C(num - right, k) / C(num, k), for `right` of `num` answers; a product, since the binomials overflow.

    Raises ValueError where there are fewer than k answers.
    """
    if not 1 <= k <= num or not 0 <= right <= num:
        raise ValueError(f"pass@{k} of {right} right answers among {num}")
    if num - right < k:
        return 1.0
    missed = 1.0
    for all_of_them in range(num - right + 1, num + 1):
        missed *= 1 - k / all_of_them
    return 1 - missed


def ks(group_size: int) -> tuple[int, ...]:
    """The k that are reported: 1, 2, 4, ... and the group size."""
    return tuple(sorted({*_powers(group_size), group_size}))


def _powers(most: int) -> Iterator[int]:
    k = 1
    while k <= most:
        yield k
        k *= 2


@dataclass(slots=True)
class Running:
    """Number, sum and sum of squares of values that pass by."""

    num: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.num += 1
        self.total += value
        self.squares += value * value


@dataclass(slots=True)
class PassAtK:
    """Mean over prompts of pass@k, for every k that is reported. Prompts with fewer than k answers have no pass@k."""

    group_size: int
    of: dict[int, Running] = field(init=False)

    def __post_init__(self) -> None:
        self.of = {k: Running() for k in ks(self.group_size)}

    def add(self, num: int, right: int) -> None:
        """Count a prompt with `right` of `num` scored answers."""
        for k, running in self.of.items():
            if k <= num:
                running.add(pass_at_k(num, right, k))
