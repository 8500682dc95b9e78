"""bf16 weights that lose nothing by being bf16: fp32 as two halves of 16 bits, or rounding at random.

A bf16 number is the upper half of an fp32 number: sign, all of the exponent, 7 of the 23 bits of the mantissa. A weight
near 1 moves in steps of 2^-8, and updates of 1e-5, rounded to nearest, would leave it where it is for ever.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALF = 1 << 15
"""Half a bf16 step, in fp32 steps."""


def split(wide: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 as the nearest bf16 and what is missing to it, int16 in fp32 steps; `join` gives the same bits back.

    The halves take the 4 bytes of the fp32 number together, where a copy beside bf16 weights would take 6 (Split SGD,
    Kalamkar et al., 2005.04680, which truncates). Ties round away from zero, so that the remainder always fits.
    """
    bits = wide.view(torch.int32)
    upper = (bits + HALF).bitwise_right_shift_(16)
    # The lower half as a signed number is the remainder: from HALF on it is negative, and upper has been rounded up.
    return upper.to(torch.int16).view(torch.bfloat16), bits.to(torch.int16)


def join(narrow: Tensor, remainder: Tensor) -> Tensor:
    """The fp32 number of which `split` made the two."""
    upper = narrow.view(torch.int16).to(torch.int32).bitwise_left_shift_(16)
    return upper.add_(remainder).view(torch.float32)


def round_at_random(wide: Tensor, generator: torch.Generator) -> Tensor:
    """fp32 [n] to one of its two bf16 neighbours, the nearer one more often: the mean is the number itself.

    Stochastic rounding (Gupta et al., 1502.02551, section 3), for bf16 weights as Zamirai et al., 2010.06192, use it: a
    random number below one bf16 step is added to the magnitude, and the lower half is cut off.
    """
    # 64 random bits are four numbers of 16: a draw is what costs.
    drawn = torch.empty((len(wide) + 3) // 4, dtype=torch.int64, device=wide.device)
    drawn.random_(-(1 << 63), None, generator=generator)
    below_one_step = drawn.view(torch.int16)[: len(wide)].to(torch.int32).bitwise_and_(0xFFFF)
    upper = below_one_step.add_(wide.view(torch.int32)).bitwise_right_shift_(16)
    return upper.to(torch.int16).view(torch.bfloat16)
