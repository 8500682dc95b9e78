"""An adapter folded into its base, and the check that nothing changed on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from whet.errors import ModelError


def merge_adapter(
    model: PeftModel, probes: Sequence[Sequence[int]], *, dtype: torch.dtype, tolerance: float
) -> tuple[PreTrainedModel, float]:
    """Fold the adapter into the weights, cast to `dtype`, and compare next-token log-probs over the probe texts.

    Returns the merged model and the largest absolute difference of any log-prob whose probability is above 1e-3 in
    the unmerged model (the far tail of a bf16 softmax is noise). Raises ModelError above `tolerance`.
    """
    before = [_next_token_logprobs(model, ids) for ids in probes]
    merged = model.merge_and_unload(safe_merge=True).to(dtype)
    differences = [
        (_next_token_logprobs(merged, ids) - expected).abs()[_likely(expected)]
        for ids, expected in zip(probes, before, strict=True)
    ]
    worst = float(torch.cat(differences).max())
    # Written so that NaN, which compares as false with everything, is refused.
    if not worst <= tolerance:
        raise ModelError(
            "merged model differs from its adapter", field="tolerance", found=f"{worst:.4f} > {tolerance}",
            fix="write it as fp32, or raise the tolerance if you accept the difference",
        )  # fmt: skip
    return merged, worst


def _likely(logprobs: Tensor) -> Tensor:
    """[L, V] bool: tokens above 1e-3, and at least the likeliest of each position."""
    return (logprobs > math.log(1e-3)) | (logprobs == logprobs.amax(dim=-1, keepdim=True))


def _next_token_logprobs(model: torch.nn.Module, ids: Sequence[int]) -> Tensor:
    """[L, V] float32 on the CPU."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False).logits
    return torch.log_softmax(logits[0].float(), dim=-1).cpu()
