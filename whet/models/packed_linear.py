"""Linear layers whose weights are kept in the order in which a CPU's products read them.

A plain weight is reordered anew at every product. With many tokens that is lost in the noise; with the few dozen rows
of a decoding step it is a third of the time in bf16 and half of it in fp32. In bf16 the numbers are the same to the
bit: only where they lie differs. In fp32 plain products are another library's (MKL), which adds up in another order.
A reordered weight is read by products alone, so an embedding that is tied to the head stays plain beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 32
"""Rows for which the order is chosen; products of any other number read it too."""
LEAST_WEIGHTS = 512 * 512
"""Weights from which on an fp32 product is faster by oneDNN, whose calls cost it more."""
OPERATORS = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
"""torch's own, but not public (its compiler uses them): where one is missing, nothing is packed."""


class PackedLinear(torch.nn.Module):
    """y = x W' + b without gradient; `packs` says for which weights."""

    def __init__(self, weight: Tensor, bias: torch.nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias
        self.take(weight)

    def take(self, weight: Tensor) -> None:
        """Take over a plain weight [out, in]; what was there before is freed."""
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)

    @property
    def num_weights(self) -> int:
        return self._packed.numel()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out

    def silu(self, x: Tensor) -> Tensor:
        """silu(y), rounded once."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "swish", [], "")
        return out

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """y * other, rounded once."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._packed, self.bias, "mul")
        return out

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """y + other, rounded once."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._packed, self.bias, "add")
        return out


def packs(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether products of this weight, in this type, are faster by oneDNN in an order that is kept."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    known = available and all(hasattr(torch.ops.mkldnn, name) for name in OPERATORS)
    if not known or weight.device.type != "cpu":
        return False
    if dtype == torch.float32:
        return weight.numel() >= LEAST_WEIGHTS
    return dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
