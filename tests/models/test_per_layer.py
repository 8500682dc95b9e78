"""Gemma 4, whose layers have heads of different widths, and so configurations of their own."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

from whet.models.memory import activation_bytes, decoding_tokens
from whet.models.per_layer import largest


@pytest.fixture(scope="module")
def model() -> Gemma4ForCausalLM:
    config = Gemma4TextConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, global_head_dim=16, hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=60, layer_types=["sliding_attention", "full_attention"], num_kv_shared_layers=0,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    return Gemma4ForCausalLM(config)


def test_a_number_that_layers_have_of_their_own_is_the_largest(model: Gemma4ForCausalLM) -> None:
    config = model.config.get_text_config()
    with pytest.raises(RuntimeError, match="per-layer"):
        _ = config.head_dim
    assert largest(config, "head_dim") == 16
    assert largest(config, "num_hidden_layers") == 2 and largest(config, "no_such_number") is None


def test_its_memory_is_estimated(model: Gemma4ForCausalLM) -> None:
    assert activation_bytes(model, torch.float32) > 0 and decoding_tokens(model) > 0
