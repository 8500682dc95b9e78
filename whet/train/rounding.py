"""bf16 weights that lose nothing by being bf16: fp32 as two halves of 16 bits, or rounding at random.

A bf16 number is the upper half of an fp32 number: sign, all of the exponent, 7 of the 23 bits of the mantissa. A weight
near 1 moves in steps of 2^-8, and updates of 1e-5, rounded to nearest, would leave it where it is for ever.

All functions write into tensors they are given, of the same length: made anew for millions of weights, again and again,
temporary tensors would cost more than the arithmetic, and leave holes in the memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALF = 1 << 15
"""Half a bf16 step, in fp32 steps."""


def split(wide: Tensor, narrow: Tensor, remainder: Tensor | None, spare: Tensor) -> None:
    """fp32 `wide` into the nearest bf16 and what is missing to it, int16 in fp32 steps. `spare` is int32.

    The halves take the 4 bytes of the fp32 number together, where a copy beside bf16 weights would take 6 (Split SGD,
    Kalamkar et al., 2005.04680, which truncates). Ties round away from zero, so that the remainder always fits.
    """
    bits = wide.view(torch.int32)
    torch.add(bits, HALF, out=spare)
    narrow.view(torch.int16).copy_(spare.bitwise_right_shift_(16))
    if remainder is not None:
        # The lower half as a signed number: from HALF on it is negative, and the upper half has been rounded up.
        remainder.copy_(bits)


def join(narrow: Tensor, remainder: Tensor, wide: Tensor) -> None:
    """Into `wide` the fp32 numbers of which `split` made the two."""
    bits = wide.view(torch.int32)
    bits.copy_(narrow.view(torch.int16)).bitwise_left_shift_(16).add_(remainder)


def round_at_random(wide: Tensor, narrow: Tensor, spare: Tensor, generator: torch.Generator) -> None:
    """fp32 `wide` to one of its two bf16 neighbours, the nearer one more often: the mean is the number itself.

    Stochastic rounding (Gupta et al., 1502.02551, section 3), for bf16 weights as Zamirai et al., 2010.06192, use it: a
    random number below one bf16 step is added to the magnitude, and the lower half is cut off. `spare` is int32.
    """
    # 64 random bits are four numbers of 16: a draw is what costs.
    drawn = torch.empty((len(wide) + 3) // 4, dtype=torch.int64, device=wide.device)
    drawn.random_(-(1 << 63), None, generator=generator)
    below_one_step = spare.copy_(drawn.view(torch.int16)[: len(wide)]).bitwise_and_(0xFFFF)
    narrow.view(torch.int16).copy_(below_one_step.add_(wide.view(torch.int32)).bitwise_right_shift_(16))
