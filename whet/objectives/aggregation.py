"""How the terms of tokens become a loss: what a token's term is multiplied by, and what the sum is divided by.

    class          a token's factor        unit (counted over the whole step)      who, in TRL and in verl
    SequenceMean   1 / |o_i|               response                                grpo; seq-mean-token-mean
    TokenMean      1                       token                                   dapo, bnpo, cispo; token-mean
    SequenceSum    1                       response                                luspo; seq-mean-token-sum
    Constant       1                       response x longest response allowed     dr_grpo; seq-mean-token-sum-norm

TRL takes grpo's, bnpo's and dr_grpo's means over a micro-batch and averages those, so that its bnpo depends on how a
step is split; dapo and cispo it divides by the tokens of the generation batch. Here every one is divided by the units
of the whole optimiser step. A response has at least one token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Aggregation(Protocol):
    def total(self, terms: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
        """Terms of tokens [N], `rows` [N] the response of each, `lengths` [R] -> scalar, summed over the unit."""
        ...

    def units(self, num_rows: int, num_tokens: int) -> float:
        """What the sum over that many responses and tokens is divided by."""
        ...


@dataclass(frozen=True, slots=True)
class SequenceMean:
    """Every response counts the same, whatever its length (GRPO, 2402.03300, eq. 3)."""

    def total(self, terms: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
        return (terms / lengths.to(terms)[rows]).sum()

    def units(self, num_rows: int, num_tokens: int) -> float:
        return float(num_rows)


@dataclass(frozen=True, slots=True)
class TokenMean:
    """Every token counts the same, a long response for more (DAPO, 2503.14476, eq. 12)."""

    def total(self, terms: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
        return terms.sum()

    def units(self, num_rows: int, num_tokens: int) -> float:
        return float(num_tokens)


@dataclass(frozen=True, slots=True)
class SequenceSum:
    """A response counts for the sum of its tokens: the policy gradient as it is (RLOO, 2402.14740)."""

    def total(self, terms: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
        return terms.sum()

    def units(self, num_rows: int, num_tokens: int) -> float:
        return float(num_rows)


@dataclass(frozen=True, slots=True)
class Constant:
    """The same as the sum, over a constant that no response changes (Dr. GRPO, 2503.20783)."""

    max_tokens: int
    """The longest response allowed. verl takes the padded length of the batch unless it is told."""

    def total(self, terms: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
        return terms.sum()

    def units(self, num_rows: int, num_tokens: int) -> float:
        return float(num_rows * self.max_tokens)
