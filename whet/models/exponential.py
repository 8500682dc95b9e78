"""e^x of many numbers, in their place."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG2_E = 1 / math.log(2)


def exp_(x: Tensor) -> Tensor:
    """Replace x by e^x. In fp32 on a CPU by 2^(x log2 e), to within 1e-5 of it up to x = 88.

    There torch hands fp32 to the exponential of Intel's library, which on a processor that is not Intel's takes three
    times as long as its own power of two and the pass before it.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return x.mul_(LOG2_E).exp2_()
    return x.exp_()
