"""An adapter folded into its base, and the check that nothing changed on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from whet.errors import ModelError
from whet.models.backbone import unwrapped
from whet.models.reward import narrow_layers
from whet.models.vision import language_layers


def merge_adapter(
    model: PeftModel, probes: Sequence[Sequence[int]], *, dtype: torch.dtype, tolerance: float,
    before: Sequence[Tensor] | None = None,
) -> tuple[PreTrainedModel, float]:  # fmt: skip
    """Fold the adapter into the weights, cast to `dtype`, and compare next-token log-probs over the probe texts.

    Returns the merged model and the largest absolute difference of any log-prob whose probability is above 1e-3 in
    the unmerged model (the far tail of a bf16 softmax is noise). `before` are the log-probs of the adapter where it was
    trained on another base than this one. Raises ModelError above `tolerance`.
    """
    before = probe_logprobs(model, probes) if before is None else before
    merged: PreTrainedModel = model.merge_and_unload(safe_merge=True).to(dtype)
    return merged, _within(logprob_difference(probe_logprobs(merged, probes), before), tolerance)


def probe_logprobs(model: torch.nn.Module, probes: Sequence[Sequence[int]]) -> list[Tensor]:
    """[L, V] for each probe: the log-probs of every next token."""
    return [_next_token_logprobs(model, ids) for ids in probes]


def logprob_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest absolute difference where the expected probability is above 1e-3."""
    pairs = zip(found, expected, strict=True)
    return float(torch.cat([(one - other).abs()[_likely(other)] for one, other in pairs]).max())


def merge_reward_adapter(
    model: PeftModel, probes: Sequence[Sequence[int]], *, dtype: torch.dtype, tolerance: float,
    before: Sequence[Tensor] | None = None,
) -> tuple[PreTrainedModel, float]:  # fmt: skip
    """Fold a reward model's adapter into its layers, cast these to `dtype`, and compare the scores of the probe texts.

    The head stays fp32. Returns the merged model and the largest absolute difference; `before` are scores as above.
    Raises ModelError above `tolerance`.
    """
    before = probe_scores(model, probes) if before is None else before
    merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    narrow_layers(merged, dtype)
    return merged, _within(score_difference(probe_scores(merged, probes), before), tolerance)


def probe_scores(model: torch.nn.Module, probes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The score of each probe."""
    return [_score(model, ids) for ids in probes]


def score_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest absolute one."""
    return float((torch.stack(list(found)) - torch.stack(list(expected))).abs().max())


def _within(worst: float, tolerance: float) -> float:
    """The largest difference. Raises ModelError above the tolerance."""
    # Written so that NaN, which compares as false with everything, is refused.
    if not worst <= tolerance:
        raise ModelError(
            "merged model differs from its adapter", field="tolerance", found=f"{worst:.4f} > {tolerance}",
            fix="write it as fp32, or raise the tolerance if you accept the difference",
        )  # fmt: skip
    return worst


def _likely(logprobs: Tensor) -> Tensor:
    """[L, V] bool: tokens above 1e-3, and at least the likeliest of each position."""
    return (logprobs > math.log(1e-3)) | (logprobs == logprobs.amax(dim=-1, keepdim=True))


def _next_token_logprobs(model: torch.nn.Module, ids: Sequence[int]) -> Tensor:
    """[L, V] float32 on the CPU."""
    return torch.log_softmax(_logits(model, ids)[0].float(), dim=-1).cpu()


@torch.inference_mode()
def _score(model: torch.nn.Module, ids: Sequence[int]) -> Tensor:
    """float32 on the CPU."""
    whole = unwrapped(model)
    taken = torch.tensor([list(ids)], device=whole.device)
    hidden = language_layers(whole)(input_ids=taken, use_cache=False).last_hidden_state[0, -1]
    score: Tensor = whole.score(hidden)
    return score.squeeze().float().cpu()


@torch.inference_mode()
def _logits(model: torch.nn.Module, ids: Sequence[int]) -> Tensor:
    device = next(model.parameters()).device
    logits: Tensor = model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False).logits
    return logits
