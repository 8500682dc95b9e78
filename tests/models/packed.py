"""Small models of the architectures people bring, packed rows of random trees, and the plain forward pass."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    GraniteSWAConfig,
    GraniteSWAForCausalLM,
    HyperCLOVAXConfig,
    HyperCLOVAXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from whet.models.attention import NAME
from whet.models.rows import from_trees, row_places
from whet.schema.packed import Packed, Tree

VOCABULARY = 300
PLAIN = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip
SMALL = {**PLAIN, "head_dim": 8}
# Caps this low bend every logit and score, so a head or an attention without them would be caught.
CAPPED = {**SMALL, "final_logit_softcapping": 0.3, "attn_logit_softcapping": 5.0}
OLDER = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}

ARCHITECTURES = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SMALL, tie_word_embeddings=True)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**PLAIN)),
    "llama": (LlamaForCausalLM, LlamaConfig(**SMALL)),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**CAPPED, sliding_window=64)),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig(**SMALL, sliding_window=64)),
    "mistral": (MistralForCausalLM, MistralConfig(**SMALL, sliding_window=64)),
    "cohere": (CohereForCausalLM, CohereConfig(**PLAIN)),
    "granite": (GraniteForCausalLM, GraniteConfig(**PLAIN, logits_scaling=4.0)),
    "hyperclovax": (HyperCLOVAXForCausalLM, HyperCLOVAXConfig(**SMALL, logits_scaling=0.125)),
    "phi": (PhiForCausalLM, PhiConfig(**PLAIN)),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=VOCABULARY, **OLDER, **NO_DROPOUT)),
}
"""Packed by the model's own attention."""
PADDED = {
    "gemma2, short window": (Gemma2ForCausalLM, Gemma2Config(**CAPPED, sliding_window=8)),
    "mamba": (MambaForCausalLM, MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)),
}
"""Given padded rows."""
SINKS = {
    "gpt_oss": (
        GptOssForCausalLM, GptOssConfig(**SMALL, sliding_window=64, num_local_experts=4, num_experts_per_tok=2)
    ),
    "granite_swa": (GraniteSWAForCausalLM, GraniteSWAConfig(**PLAIN, sliding_window=64)),
}  # fmt: skip
"""Given padded rows under their own attention, which has sinks."""


def build(name: str, *, attention: str = NAME) -> PreTrainedModel:
    """A random model, its weights large enough that its answers are far from uniform."""
    made, config = (ARCHITECTURES | PADDED | SINKS)[name]
    torch.manual_seed(0)
    # Of its own configuration: a model that is given another attention is told so in it.
    model: PreTrainedModel = made(copy.deepcopy(config))
    if model._supports_attention_backend:
        model.set_attn_implementation(attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8.0)
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.fill_(2.0)  # they start so near to 0 that one would not be missed
    return model


def with_adapter(model: PreTrainedModel, *, targets: str | list[str] = "all-linear") -> torch.nn.Module:
    """The model under a live adapter."""
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return adapted


def pack(shapes: Sequence[tuple[int, tuple[int, ...]]], *, seed: int = 0) -> Packed:
    """Random ids of trees given as (prompt, branches)."""
    trees, start = [], 0
    for prompt, branches in shapes:
        trees.append(Tree(start, prompt, branches))
        start += trees[-1].num_tokens
    generator = torch.Generator().manual_seed(seed)
    return from_trees(torch.randint(1, VOCABULARY, (start,), generator=generator), tuple(trees))


def plain_logprobs(model: torch.nn.Module, packed: Packed) -> torch.Tensor:
    """The packed row's target log-probs by the model's own forward pass over one row after the other."""
    scored = []
    rows = row_places(packed.trees)
    prompts = [tree.prompt if tree.branches else 1 for tree in packed.trees for _ in range(tree.num_rows)]
    for places, prompt in zip(rows, prompts, strict=True):
        ids = packed.input_ids[places[places >= 0]]
        logprobs = model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0].log_softmax(dim=-1)
        scored.append(logprobs[prompt - 1 : -1].gather(-1, ids[prompt:].unsqueeze(-1)).squeeze(-1))
    return torch.cat(scored)
