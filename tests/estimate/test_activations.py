"""The counts of kept activations are what autograd really saves, byte for byte in all but the smallest things."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from whet.estimate.activations import kept_bytes
from whet.estimate.setting import MicroBatch, Setting
from whet.models.rows import from_trees
from whet.models.scoring import TokenScorer
from whet.schema.packed import Tree
from whet.schema.shape import ModelShape, Product

H, INNER, HEADS, KEYS, WIDTH, RANK = 64, 160, 4, 2, 32, 4
ROW, PAIR = (Tree(0, 512),), (Tree(0, 128, (192, 192)),)


@dataclass(frozen=True)
class Way:
    """How a model is trained."""

    trains: Literal["all", "adapter"]
    weights: Literal["fp32", "bf16_master"] = "fp32"
    arithmetic: Literal["fp32", "bf16"] = "fp32"


WAYS = [
    Way("all"), Way("adapter"), Way("adapter", arithmetic="bf16"), Way("all", "fp32", "bf16"),
    Way("all", "bf16_master", "bf16"),
]  # fmt: skip


def model(kind: Any, config: Any, layers: int, way: Way) -> torch.nn.Module:
    made = kind(config(
        vocab_size=300, hidden_size=H, intermediate_size=INNER, num_hidden_layers=layers, num_attention_heads=HEADS,
        num_key_value_heads=KEYS, head_dim=WIDTH, tie_word_embeddings=True,
    ))  # fmt: skip
    narrow = way.weights != "fp32" or (way.trains == "adapter" and way.arithmetic == "bf16")
    made = made.to(torch.bfloat16 if narrow else torch.float32)
    if way.trains == "adapter":
        made = get_peft_model(made, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return made.train()


def saved_bytes(whole: torch.nn.Module, trees: tuple[Tree, ...], *, narrow: bool) -> int:
    """Bytes of all memory that autograd holds on to, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in whole.parameters()}
    held: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        memory = x.untyped_storage()
        if memory.data_ptr() not in own:
            held[memory.data_ptr()] = memory.nbytes(), x  # kept, so that the address is not given again
        return x

    row = from_trees(torch.arange(sum(tree.num_tokens for tree in trees)) % 300, trees)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", enabled=narrow):
        TokenScorer(whole).hidden(row, torch.arange(row.num_tokens))
    return sum(size for size, _ in held.values())


def shape(layers: int, *, normed: bool) -> ModelShape:
    a, k = HEADS * WIDTH, KEYS * WIDTH
    products = tuple(
        Product(inputs=inputs, outputs=outputs, count=count * layers)
        for inputs, outputs, count in ((H, a, 1), (H, k, 2), (a, H, 1), (H, INNER, 2), (INNER, H, 1))
    )
    return ModelShape(
        name="made", parameters=0, largest=0, block=0, vision=0, layers=layers, width=H, inner=INNER, heads=HEADS,
        head_width=WIDTH, key_heads=KEYS, vocabulary=300, tied=True, normed_heads=normed, products=products,
        adapted=products,
    )  # fmt: skip


def setting(layers: int, way: Way, trees: tuple[Tree, ...], *, normed: bool) -> Setting:
    seen = sum(tree.prompt + size for tree in trees for size in tree.branches)
    blocks = {ROW: 128 * (128 + 256 + 384 + 512), PAIR: 128 * 128 + 4 * 96 * (224 + 320) // 2}
    batch = MicroBatch(tokens=512, targets=0, recompute=False, seen=seen, pairs=blocks[trees])
    return Setting(
        shape=shape(layers, normed=normed), on_cpu=True, arithmetic=way.arithmetic, trains=way.trains, rank=RANK,
        dropout=False, weights=way.weights, optimizer="adamw", score_head=0, scores=False, trains_vision=False,
        micro_batch=batch, several=True, beside=(), value_model=False, decoding=None, pass_tokens=0, file_bytes=0,
        libraries=0,
    )  # fmt: skip


@pytest.mark.parametrize("trees", [ROW, PAIR], ids=["row", "pair"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.trains}-{way.weights}-{way.arithmetic}")
@pytest.mark.parametrize(
    ("kind", "config"), [(Qwen3ForCausalLM, Qwen3Config), (LlamaForCausalLM, LlamaConfig)], ids=["qwen3", "llama"]
)
def test_what_a_layer_keeps(kind: Any, config: Any, way: Way, trees: tuple[Tree, ...]) -> None:
    torch.manual_seed(0)
    narrow = way.arithmetic == "bf16"
    two, three = (saved_bytes(model(kind, config, layers, way), trees, narrow=narrow) for layers in (2, 3))
    normed = kind is Qwen3ForCausalLM
    said = kept_bytes(setting(3, way, trees, normed=normed)) - kept_bytes(setting(2, way, trees, normed=normed))
    assert said == pytest.approx(three - two, rel=0.02)


def test_recomputed_layers_keep_their_input_alone() -> None:
    """Four layers: what one keeps whole, and 4 bytes of H numbers a token for each."""
    from dataclasses import replace

    whole = setting(4, Way("adapter"), ROW, normed=True)
    again = replace(whole, micro_batch=replace(whole.micro_batch, recompute=True))
    last = 512 * 4 * H
    one_layer = (kept_bytes(whole) - last) / 4
    assert kept_bytes(again) == pytest.approx(one_layer + 4 * 512 * 4 * H + last)
