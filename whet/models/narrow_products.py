"""Which narrow types a CPU multiplies by instructions of its own; by any others a training crawls."""

from __future__ import annotations

import platform
import warnings
from functools import cache
from typing import Literal

import torch

OWN = {
    "bf16": ("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
    "fp16": ("_is_amx_fp16_supported",),
}
"""torch's questions to an x86 processor. They are not public: where one is missing, its answer counts as no."""


@cache
def warn_of_slow_products(precision: Literal["bf16", "fp16"]) -> None:
    """Say once in a process that fp32 is faster, where it is."""
    if not has_narrow_products(precision):
        warnings.warn(
            f"{precision} on a CPU without instructions for it: several to a hundred times slower than fp32. Leave "
            "precision at auto and train.weights at fp32",
            stacklevel=3,
        )


def has_narrow_products(precision: Literal["bf16", "fp16"]) -> bool:
    """Whether this CPU has AVX512-BF16 or AMX, or is an ARM one whose products oneDNN takes in this type."""
    if any(getattr(torch.cpu, name, lambda: False)() for name in OWN[precision]):
        return True
    if platform.machine().lower() in ("x86_64", "amd64"):
        return False  # oneDNN takes bf16 on AVX512 too, and turns it into fp32 for each product
    known = getattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported", None)
    return known is not None and bool(known())
