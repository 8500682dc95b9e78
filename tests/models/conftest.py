"""oneDNN's bf16 products, for real where the processor has the instructions, and computed without where not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu

AFTER = {"swish": silu}
BETWEEN = {"mul": torch.mul, "add": torch.add}


def in_order(weight: Tensor, _rows: int) -> Tensor:
    """The order is the operator's own affair; that it is a copy is not."""
    return weight.clone()


class Pointwise:
    """torch.ops.mkldnn._linear_pointwise: a plain product as torch rounds it; with what follows, rounded once."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, name: str, *_unused: object) -> Tensor:
        if name == "none":
            return linear(x, weight, bias)
        return AFTER[name](self._product(x, weight, bias)).to(x.dtype)

    def binary(self, x: Tensor, other: Tensor, weight: Tensor, bias: Tensor | None, name: str) -> Tensor:
        return BETWEEN[name](self._product(x, weight, bias), other.float()).to(x.dtype)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x.float(), weight.float(), None if bias is None else bias.float())


@pytest.fixture
def packed_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are packed in this test, whatever the processor."""
    operators = torch.ops.mkldnn
    if not operators._is_mkldnn_bf16_supported():
        monkeypatch.setattr(operators, "_is_mkldnn_bf16_supported", lambda: True)
        monkeypatch.setattr(operators, "_reorder_linear_weight", in_order)
        monkeypatch.setattr(operators, "_linear_pointwise", Pointwise())
