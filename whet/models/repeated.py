"""Shapes that come again: lengths are rounded up where every other one would cost a CPU a kernel of its own.

oneDNN compiles a kernel for each shape of a product in bf16 and forgets all but the latest few hundred. That takes one
to four milliseconds, as long as the product itself, and packed rows are of all lengths: a sixth of the time of a small
model's training. With filling behind them there are a dozen lengths, and memory that was freed fits what comes next.
What fills goes through the model like everything else, so a large one, whose products take longer, has shorter steps.
"""

from __future__ import annotations

import torch

TOKENS, TOKENS_OF_LARGE = 64, 32
"""Rows have a multiple of so many tokens."""
LARGE = 200_000_000
"""Weights between embedding and head from which filling costs more than shapes: 16 tokens through so many, forward and
backward, take a core that multiplies well as long as the two dozen kernels of one more length."""
TARGETS = 32
"""Targets are a multiple of so many: they go in tiles (`whet.models.head_sums`), so there are few shapes of them."""
SEGMENT_TOKENS = 32
"""A prompt or branch has room for a multiple of so many in its attention."""
ROWS = 8
"""Rows that are decoded together are a multiple of so many."""
ONEDNN_ABOVE = 16**3
"""Rows times inputs times outputs of a bf16 product (ATen's `mkldnn_gemm_min_size`)."""


def row_step(weights: float) -> int:
    """What the tokens of a packed row are a multiple of, in a model of so many weights between embedding and head."""
    return TOKENS if weights < LARGE else TOKENS_OF_LARGE


def missing(num: int, dtype: torch.dtype, device: torch.device, round_to: int) -> int:
    """Rows to put behind `num` of them, for products in this type; none but on a CPU in a narrow one."""
    return -num % round_to if device.type == "cpu" and dtype in (torch.bfloat16, torch.float16) else 0


def least_rows(model: torch.nn.Module) -> int:
    """Rows from which on the model's products round alike; a sample must not know its neighbours.

    Found by trying: fp32 on a CPU from 8 rows on; bf16 there as soon as oneDNN computes all of them, which torch leaves
    to another routine up to `ONEDNN_ABOVE` multiplications. With AMX, whose tiles take over at 37 rows, from 40.
    """
    parameters = list(model.parameters())
    if parameters[0].device.type != "cpu" or parameters[0].dtype != torch.bfloat16:
        return 8
    if getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)():
        return 40
    smallest = min((parameter.numel() for parameter in parameters if parameter.ndim == 2), default=ONEDNN_ABOVE)
    return max(8, ONEDNN_ABOVE // smallest + 1)
