"""Merging: the same next-token log-probs as with the adapter, or a refusal."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from whet.errors import ModelError
from whet.models.merge import merge_adapter

PROBES = [[1, 2, 3, 4, 5, 6], [250, 9, 250], [7]]


@pytest.fixture
def adapted() -> PeftModel:
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
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
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
        merge_adapter(adapted, PROBES, dtype=torch.bfloat16, tolerance=1e-6)


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
