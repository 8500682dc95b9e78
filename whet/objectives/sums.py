"""From tokens to responses."""

from __future__ import annotations

from torch import Tensor


def row_sums(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """[N] values of tokens -> [num_rows], the sum over each row's; `rows` [N] is the row of each."""
    return values.new_zeros(num_rows).index_add(0, rows, values)
