"""An adapter folded into its base, and the check that nothing changed on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel

from whet.errors import ModelError, first_line
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
    trained on another base than this one. Raises ModelError above `tolerance`, and for an adapter that no weights of
    this model could hold.
    """
    before = probe_logprobs(model, probes) if before is None else before
    merged: PreTrainedModel = _folded(model).to(dtype)
    return merged, _within(logprob_difference(probe_logprobs(merged, probes), before), tolerance, dtype)


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
    Raises ModelError as above.
    """
    before = probe_scores(model, probes) if before is None else before
    merged = _folded(model)
    narrow_layers(merged, dtype)
    return merged, _within(score_difference(probe_scores(merged, probes), before), tolerance, dtype)


def probe_scores(model: torch.nn.Module, probes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The score of each probe."""
    return [_score(model, ids) for ids in probes]


def score_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest absolute one."""
    return float((torch.stack(list(found)) - torch.stack(list(expected))).abs().max())


def _folded(model: PeftModel) -> PreTrainedModel:
    """The model with the adapter in its weights. Raises ModelError where these cannot hold it."""
    whole: PreTrainedModel = model.get_base_model()
    for name, layer in whole.named_modules():
        if not isinstance(layer, LoraLayer) or not any(layer.lora_bias.values()):
            continue
        if getattr(layer.get_base_layer(), "bias", None) is None:
            raise ModelError(
                "the adapter adds a bias to layers without one, which no checkpoint of this model could hold",
                field="model.adapter", found=f"lora_bias, {name}",
                fix="use the adapter unmerged, or train one without lora_bias",
            )  # fmt: skip
    _untie(whole)
    try:
        merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # numbers that are not finite
        raise ModelError("the adapter cannot be merged", field="model.adapter", found=first_line(error)) from error
    return merged


def _untie(whole: PreTrainedModel) -> None:
    """Give the LM head weights of its own where they are the embeddings' and either has an adapter: folded into what
    both share, it would change both. Raises ModelError where other layers share what an adapter changes."""
    # Whole rows in place of others, which peft ties as the weights are tied, stay right for both.
    adapted = {
        id(layer.get_base_layer())
        for layer in whole.modules()
        if isinstance(layer, BaseTunerLayer) and not isinstance(layer, TrainableTokensLayer)
    }
    holders: dict[int, dict[str, torch.nn.Module]] = {}
    for name, module in whole.named_modules():
        if isinstance(weight := module._parameters.get("weight"), Tensor):
            holders.setdefault(id(weight), {})[name] = module
    head, embeddings = _inside(whole.get_output_embeddings()), _inside(whole.get_input_embeddings())
    for sharing in holders.values():
        if len(sharing) == 1 or not any(id(module) in adapted for module in sharing.values()):
            continue
        if not all(id(module) in head | embeddings for module in sharing.values()):
            raise ModelError(
                "the adapter changes a weight that layers share, each in its own way", field="model.adapter",
                found=", ".join(name.removesuffix(".base_layer") for name in sharing),
                fix="use the adapter unmerged, or train one without these layers",
            )  # fmt: skip
        for module in sharing.values():
            if id(module) in head:
                own = module.get_parameter("weight").detach().clone()
                module.weight = torch.nn.Parameter(own, requires_grad=False)
        # Of a vision-language model both say so, and whoever opens the checkpoint may read either.
        for config in (whole.config, whole.config.get_text_config()):
            config.tie_word_embeddings = False


def _inside(layer: torch.nn.Module | None) -> set[int]:
    """Ids of a layer and what its adapter wraps."""
    return set() if layer is None else {id(module) for module in layer.modules()}


def _within(worst: float, tolerance: float, dtype: torch.dtype) -> float:
    """The largest difference. Raises ModelError above the tolerance."""
    # Written so that NaN, which compares as false with everything, is refused.
    if not worst <= tolerance:
        raise ModelError(
            "merged model differs from its adapter", field="tolerance", found=f"{worst:.4f} > {tolerance}",
            fix=f"{'use the adapter unmerged' if dtype == torch.float32 else 'write it as fp32'}, or raise the "
            "tolerance if you accept the difference",
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
