"""Log-probs of target tokens against the full log-softmax, for the architectures people bring."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from whet.models.scoring import token_logprobs

SMALL = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64,
}  # fmt: skip


def build(architecture: str, *, lora: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    match architecture:
        case "qwen3":
            model = Qwen3ForCausalLM(Qwen3Config(**SMALL, tie_word_embeddings=True))
        case "llama":
            model = LlamaForCausalLM(LlamaConfig(**SMALL))
        case "gemma2":
            # A cap this low bends every logit, so a head without it would be caught.
            model = Gemma2ForCausalLM(
                Gemma2Config(**SMALL, final_logit_softcapping=0.3, attn_logit_softcapping=5.0, sliding_window=8)
            )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8.0)  # far from uniform
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    return model


def rows(lengths: tuple[int, ...] = (19, 6, 12), *, extra: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded rows; the targets have holes, and the second row's are the last token alone."""
    generator = torch.Generator().manual_seed(1)
    longest = max(lengths) + extra
    ids, attention = (
        torch.zeros(len(lengths), longest, dtype=torch.int64),
        torch.zeros(len(lengths), longest, dtype=torch.int64),
    )
    target = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for b, length in enumerate(lengths):
        ids[b, :length] = torch.randint(1, 300, (length,), generator=generator)
        attention[b, :length] = 1
        target[b, length // 2 : length : 1 if b else 2] = True
    target[1] = False
    target[1, lengths[1] - 1] = True
    return ids, attention, target


def by_hand(model: torch.nn.Module, ids: torch.Tensor, attention: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Row by row without padding, all logits, a log-softmax over the whole vocabulary, one token after another."""
    picked = []
    for b in range(len(ids)):
        length = int(attention[b].sum())
        logprobs = torch.log_softmax(model(input_ids=ids[b : b + 1, :length]).logits[0].double(), dim=-1)
        picked += [logprobs[t - 1, ids[b, t]] for t in range(1, length) if target[b, t]]
    return torch.stack(picked)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma2"])
def test_equal_to_the_full_log_softmax(architecture: str, lora: bool) -> None:
    model = build(architecture, lora=lora).eval()
    batch = rows()
    found, expected = token_logprobs(model, *batch), by_hand(model, *batch)
    assert found.dtype == torch.float32
    assert expected.std() > 0.05, "a flat distribution would prove nothing"
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    trained = [p for p in model.parameters() if p.requires_grad]
    # A weighted sum, so that a permuted order of tokens would show in the gradient.
    weights = torch.linspace(0.5, 2.0, len(found))
    ours = torch.autograd.grad((weights * found).sum(), trained)
    theirs = torch.autograd.grad((weights.double() * expected).sum(), trained)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * max(1.0, float(other.abs().max())))


def test_in_double_it_is_exact() -> None:
    model = build("qwen3").double().eval()
    batch = rows()
    torch.testing.assert_close(token_logprobs(model, *batch).double(), by_hand(model, *batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma2"])
def test_padding_changes_nothing(architecture: str) -> None:
    model = build(architecture).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            token_logprobs(model, *rows()), token_logprobs(model, *rows(extra=13)), rtol=1e-5, atol=1e-5
        )


def test_what_stands_in_the_padding_is_never_read() -> None:
    model = build("qwen3").eval()
    ids, attention, target = rows()
    other = torch.where(attention.bool(), ids, torch.full_like(ids, 299))
    with torch.no_grad():
        torch.testing.assert_close(
            token_logprobs(model, ids, attention, target), token_logprobs(model, other, attention, target)
        )


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2"])
def test_bf16_stays_near_fp32(architecture: str) -> None:
    model = build(architecture).eval()
    with torch.no_grad():
        exact = token_logprobs(model, *rows())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = token_logprobs(model, *rows())
    assert rough.dtype == torch.float32
    # bf16 has 8 bits of mantissa: a few percent over two layers.
    assert (rough - exact).abs().max() < 0.08 * exact.abs().max()


def test_a_batch_without_targets_has_a_gradient_of_zero() -> None:
    """A rank or micro-batch with nothing to train must still take part in the backward pass."""
    model = build("qwen3", lora=True)
    ids, attention, target = rows()
    found = token_logprobs(model, ids, attention, torch.zeros_like(target))
    assert found.shape == (0,)
    found.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
