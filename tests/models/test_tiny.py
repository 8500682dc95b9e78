"""The model built on the spot must be indistinguishable, to whoever opens it, from a downloaded checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from whet.models.tiny import build_tiny

TEXTS = ["The cat sat on the mat.", "Ada wrote 42 lines; 7 were wrong.", "猫坐在垫子上。"] * 20
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("tiny"), TEXTS, vocab_size=300, hidden_size=32)


def test_opens_with_the_auto_classes(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    assert model.config.model_type == "qwen3"
    assert model.config.vocab_size == len(tokenizer) <= 300
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    ids = tokenizer("The cat", return_tensors="pt").input_ids
    assert torch.isfinite(model(ids).logits).all()


def test_same_arguments_same_bytes(tiny: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    again = build_tiny(tmp_path, iter(TEXTS), vocab_size=300, hidden_size=32)
    assert torch.equal(state, torch.random.get_rng_state())
    names = sorted(file.name for file in tiny.iterdir())
    assert names == sorted(file.name for file in again.iterdir())
    for name in names:
        assert (tiny / name).read_bytes() == (again / name).read_bytes(), name


def test_another_seed_other_weights(tiny: Path, tmp_path: Path) -> None:
    other = build_tiny(tmp_path, TEXTS, vocab_size=300, hidden_size=32, seed=1)
    assert (tiny / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
    assert (tiny / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("text", ["The cat", "  two  spaces\n\nand lines ", "unseen: ß 🙂 猫", "don 't . , 1024"])
def test_any_text_round_trips(tiny: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_digits_stay_apart(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert tokenizer.tokenize("2048") == ["2", "0", "4", "8"]


def test_chat_template(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    answered = [*messages, {"role": "assistant", "content": "Hello"}]
    assert tokenizer.apply_chat_template(answered, tokenize=False) == prompt + "Hello<|im_end|>\n"


def test_chat_template_with_tools(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": None, "tool_calls": [call, {"name": "add", "arguments": '{"a": 2}'}]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "It is 2."},
    ]
    text = tokenizer.apply_chat_template(messages, tools=[TOOL], tokenize=False)
    assert text.startswith("<|im_start|>system\nUse tools.\n\nTools, one JSON object a line:\n" + json.dumps(TOOL))
    assert text.count("<|im_start|>system") == 1
    calls = [piece.split("</tool_call>")[0] for piece in text.split("<tool_call>")[2:]]
    assert [json.loads(piece)["arguments"] for piece in calls] == [{"a": 1}, {"a": 2}]
    assert "<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\nIt is 2.<|im_end|>\n" in text


def test_vocabulary_too_small(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 259"):
        build_tiny(tmp_path, TEXTS, vocab_size=100)
