"""Model sizes by name: Qwen3 architectures with random weights, built on the spot.

What a step costs depends on the shape of the weights and not on their values, so no hub is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of a Qwen3 decoder."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int = 151_936
    tied: bool = True
    """LM head and embedding are one matrix."""

    @property
    def attention_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def layer_products(self) -> int:
        """Weights of one layer that multiply every token: q, k, v, o, and the gated feed-forward's three."""
        attention = self.hidden * (2 * self.attention_width + 2 * self.kv_heads * self.head_dim)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """All parameters: embedding, head, layers, norms (two a layer, one of q, one of k, one at the end)."""
        norms = self.layers * (2 * self.hidden + 2 * self.head_dim) + self.hidden
        matrices = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return matrices + self.layers * self.layer_products + norms

    def lora_parameters(self, rank: int) -> int:
        """Parameters of an adapter of this rank on every linear layer but the head: rank * (inputs + outputs) each."""
        width, kv = self.attention_width, self.kv_heads * self.head_dim
        attention = 2 * (self.hidden + width) + 2 * (self.hidden + kv)
        return self.layers * rank * (attention + 3 * (self.hidden + self.intermediate))


SHAPES = {
    "vl": Shape(hidden=256, layers=4, heads=8, kv_heads=4, head_dim=32, intermediate=768),
    "tiny": Shape(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=64, vocabulary=2048),
    "103m": Shape(hidden=512, layers=8, heads=8, kv_heads=4, head_dim=64, intermediate=1536),
    "0.6b": Shape(hidden=1024, layers=28, heads=16, kv_heads=8, head_dim=128, intermediate=3072),
    "7b": Shape(
        hidden=3584, layers=28, heads=28, kv_heads=4, head_dim=128, intermediate=18944, vocabulary=152_064, tied=False
    ),
}
"""`0.6b` is Qwen3-0.6B's shape, `7b` has the numbers of Qwen2.5-7B; `tiny` is for tests and measures nothing. `vl` is
the language model of `benchmarks.vision`."""
BATCH_SIZES = {"vl": 4, "tiny": 2, "103m": 4, "0.6b": 2, "7b": 8}
"""Pairs a step of dpo; see `batch_size`."""


def batch_size(task: str, model: str) -> int:
    """Records a step where none are asked for: rows for sft, pairs for dpo and reward."""
    return BATCH_SIZES[model] if task == "dpo" else max(BATCH_SIZES[model], 4)


def build_model(shape: Shape, tokenizer: PreTrainedTokenizerBase, folder: Path, *, device: str, seed: int = 0) -> None:
    """Write a bf16 checkpoint of this shape with its tokenizer. The embedding has the shape's vocabulary, whatever the
    tokenizer's."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
