"""Merging: the same next-token log-probs as with the adapter, or a refusal."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.models.pictured import build
from whet.errors import ModelError
from whet.models.merge import logprob_difference, merge_adapter, probe_logprobs

PROBES = [[1, 2, 3, 4, 5, 6], [250, 9, 250], [7]]


def tied() -> Qwen3ForCausalLM:
    """Embeddings and LM head are one weight."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, tie_word_embeddings=True,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5.0)
    return model


def with_lora(model: PreTrainedModel, **asked: Any) -> PeftModel:
    """An adapter that does something."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # peft's words on tied weights and absent biases
        wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=16, task_type="CAUSAL_LM", **asked))
    torch.manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return wrapped.eval()


@pytest.fixture
def adapted() -> PeftModel:
    wrapped = get_peft_model(tied(), LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return wrapped.eval()


def logprobs(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.tensor([ids])).logits.float(), dim=-1)


def test_merged_in_fp32_is_the_same_model(adapted: PeftModel) -> None:
    other = copy.deepcopy(adapted)
    with other.disable_adapter():
        base = [logprobs(other, ids) for ids in PROBES]
    expected = [logprobs(other, ids) for ids in PROBES]
    assert max(float((a - b).abs().max()) for a, b in zip(base, expected, strict=True)) > 0.1, (
        "the adapter does something"
    )
    merged, difference = merge_adapter(adapted, PROBES, dtype=torch.float32, tolerance=1e-3)
    assert not isinstance(merged, PeftModel)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert difference < 1e-3
    for ids, one in zip(PROBES, expected, strict=True):
        torch.testing.assert_close(logprobs(merged, ids), one, rtol=1e-4, atol=1e-4)


def test_bf16_differs_by_what_is_reported(adapted: PeftModel) -> None:
    merged, difference = merge_adapter(adapted, PROBES, dtype=torch.bfloat16, tolerance=2.0)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert 1e-4 < difference < 2.0


def test_the_tolerance_is_kept(adapted: PeftModel) -> None:
    with pytest.raises(ModelError, match=r"merged model differs from its adapter .*0\.\d+ > 1e-06\); write it as fp32"):
        merge_adapter(copy.deepcopy(adapted), PROBES, dtype=torch.bfloat16, tolerance=1e-6)
    with pytest.raises(ModelError, match=r"use the adapter unmerged, or raise the tolerance"):
        merge_adapter(adapted, PROBES, dtype=torch.float32, tolerance=1e-12)


def test_a_merge_that_forgets_the_adapter_is_refused(adapted: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, safe_merge: self.unload(), raising=False)
    with pytest.raises(ModelError, match="differs"):
        merge_adapter(adapted, PROBES, dtype=torch.float32, tolerance=0.05)


def test_nan_is_refused(adapted: PeftModel) -> None:
    """fp16 ends at 65504: larger weights become infinite, and NaN is not below any tolerance."""
    with torch.no_grad():
        adapted.base_model.model.model.layers[0].mlp.down_proj.base_layer.weight.mul_(1e7)
    with pytest.raises(ModelError, match="differs"):
        merge_adapter(adapted, PROBES, dtype=torch.float16, tolerance=0.05)


def test_a_flat_distribution_is_compared_too(adapted: PeftModel) -> None:
    """With a large vocabulary no token may reach one in a thousand."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=3000, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, head_dim=16,
        )
    )  # fmt: skip
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    _, difference = merge_adapter(wrapped, PROBES, dtype=torch.float32, tolerance=0.05)
    assert difference < 1e-5


@pytest.mark.parametrize("asked", [
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"target_modules": ["embed_tokens", "lm_head"]},
    {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
    {"target_modules": ["lm_head"], "modules_to_save": ["embed_tokens"]},
    {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]},
])  # fmt: skip
@pytest.mark.parametrize("vision", [False, True])
def test_adapters_on_tied_embeddings_and_head(asked: dict[str, Any], vision: bool, tmp_path: Path) -> None:
    model = build("qwen2_5_vl", attention="eager") if vision else tied()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    before = probe_logprobs(model, PROBES)
    adapted = with_lora(model, **asked)
    expected = probe_logprobs(adapted, PROBES)
    assert logprob_difference(before, expected) > 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft's advice to untie by hand
        merged, difference = merge_adapter(adapted, PROBES, dtype=torch.float32, tolerance=1e-4)
    assert difference < 1e-4
    merged.save_pretrained(tmp_path)
    again = (AutoModelForImageTextToText if vision else AutoModelForCausalLM).from_pretrained(tmp_path).eval()
    assert logprob_difference(probe_logprobs(again, PROBES), expected) < 1e-4
    config = json.loads((tmp_path / "config.json").read_text())
    assert not config["tie_word_embeddings"] and not config.get("text_config", config)["tie_word_embeddings"]


@pytest.mark.parametrize("asked", [{}, {"trainable_token_indices": [1, 250]}])
def test_what_stays_tied(asked: dict[str, Any], tmp_path: Path) -> None:
    """No adapter on either, or the same new rows for both."""
    merged, _ = merge_adapter(
        with_lora(tied(), target_modules=["q_proj"], **asked), PROBES, dtype=torch.float32, tolerance=1e-4
    )
    assert merged.config.tie_word_embeddings
    assert merged.get_input_embeddings().weight is merged.get_output_embeddings().weight


def test_other_layers_that_share_a_weight_are_refused() -> None:
    model = tied()
    first, second = (layer.self_attn.q_proj for layer in model.model.layers)
    second.weight = first.weight
    with pytest.raises(ModelError) as caught:
        merge_adapter(with_lora(model, target_modules=["q_proj"]), PROBES, dtype=torch.float32, tolerance=0.05)
    assert str(caught.value) == (
        "model.adapter: the adapter changes a weight that layers share, each in its own way (found "
        "model.layers.0.self_attn.q_proj, model.layers.1.self_attn.q_proj); use the adapter unmerged, or train one "
        "without these layers"
    )


def test_a_bias_that_the_base_cannot_hold() -> None:
    wrapped = with_lora(tied(), target_modules=["v_proj"], lora_bias=True)
    with pytest.raises(ModelError) as caught:
        merge_adapter(wrapped, PROBES, dtype=torch.float32, tolerance=0.05)
    assert str(caught.value) == (
        "model.adapter: the adapter adds a bias to layers without one, which no checkpoint of this model could hold "
        "(found lora_bias, model.layers.0.self_attn.v_proj); use the adapter unmerged, or train one without lora_bias"
    )


def test_a_bias_where_there_is_one() -> None:
    """Qwen2.5's query, key and value layers have biases."""
    wrapped = with_lora(build("qwen2_5_vl", attention="eager"), target_modules=["v_proj"], lora_bias=True)
    _, difference = merge_adapter(wrapped, PROBES, dtype=torch.float32, tolerance=1e-4)
    assert difference < 1e-4


def test_an_adapter_with_infinite_numbers(adapted: PeftModel) -> None:
    layer = adapted.base_model.model.model.layers[0].mlp.down_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(float("inf"))
    with pytest.raises(ModelError, match=r"model.adapter: the adapter cannot be merged \(found NaNs detected"):
        merge_adapter(adapted, PROBES, dtype=torch.float32, tolerance=0.05)
