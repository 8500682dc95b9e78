"""Shapes of models whose weights are nowhere: config.json is all there is."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

from benchmarks.shapes import SHAPES
from whet.config.model import Lora, Model
from whet.errors import ModelError
from whet.models.shape import shape_of


def test_seven_billion_from_its_numbers(tmp_path: Path) -> None:
    known = SHAPES["7b"]
    Qwen3Config(
        vocab_size=known.vocabulary, hidden_size=known.hidden, intermediate_size=known.intermediate,
        num_hidden_layers=known.layers, num_attention_heads=known.heads, num_key_value_heads=known.kv_heads,
        head_dim=known.head_dim, tie_word_embeddings=known.tied, architectures=["Qwen3ForCausalLM"],
    ).save_pretrained(tmp_path)  # fmt: skip
    found = shape_of(str(tmp_path), Model(path=str(tmp_path)))
    assert found.parameters == known.parameters
    assert found.adapter(16) == known.lora_parameters(16)
    assert found.multiplied == known.layers * known.layer_products
    assert (found.tied, found.normed_heads, found.head) == (False, True, known.vocabulary * known.hidden)
    assert (found.attention_width, found.key_width, found.inner) == (28 * 128, 4 * 128, 18_944)


def test_a_checkpoint_and_its_shape_have_the_same_weights(tiny_checkpoint: Path) -> None:
    path = str(tiny_checkpoint)
    whole = AutoModelForCausalLM.from_pretrained(path)
    found = shape_of(path, Model(path=path, lora=Lora(rank=4, targets=("q_proj", "v_proj"))))
    assert found.parameters == sum(parameter.numel() for parameter in whole.parameters())
    assert found.tied
    assert found.adapter(4) == 2 * 4 * ((32 + 32) + (32 + 16))  # two layers, q of 32 and v of 16 outputs
    assert shape_of(path, Model(path=path, lora=None)).adapted == ()


def test_a_mixture_of_experts_multiplies_with_a_part_of_them(tmp_path: Path) -> None:
    """Four experts of three matrices, two at a time."""
    Qwen3MoeConfig(
        vocab_size=100, hidden_size=16, intermediate_size=32, moe_intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=4, num_experts_per_tok=2,
    ).save_pretrained(tmp_path)  # fmt: skip
    found = shape_of(str(tmp_path), Model(path=str(tmp_path), lora=None))
    assert found.experts == 2 * 4 * 3 * 16 * 8
    assert (found.experts_share, found.inner) == (0.5, 16)


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.path: no configuration of a model"):
        shape_of(str(tmp_path), Model(path=str(tmp_path)))
