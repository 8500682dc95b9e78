"""e^x of many numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG2_E = 1 / math.log(2)


def exp(x: Tensor) -> Tensor:
    """e^x; in fp32 on a CPU as 2^(x log2 e), to within 1e-5 of it up to |x| = 88.

    There torch hands fp32 to MKL, whose exponential takes an AMD processor three times as long as torch's own exp2 and
    the multiplication before it.
    """
    return (x * LOG2_E).exp2_() if _by_mkl(x) else x.exp()


def exp_(x: Tensor) -> Tensor:
    """The same in its place."""
    return x.mul_(LOG2_E).exp2_() if _by_mkl(x) else x.exp_()


def _by_mkl(x: Tensor) -> bool:
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return has_mkl and x.device.type == "cpu" and x.dtype == torch.float32
