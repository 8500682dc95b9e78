"""Weights in 4 bits: the numbers of the dequantised ones, what is held how, and what is refused. By bitsandbytes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError

from tests.models.packed import pack, plain_logprobs
from whet.config.model import Model, Quantization
from whet.config.reward import RewardHead
from whet.errors import ModelError, RunError
from whet.models.four_bit import is_four_bit, trained_on
from whet.models.load import load_model, load_tokenizer, save_trained
from whet.models.memory import quantised_bytes
from whet.models.reward import load_reward_model
from whet.models.scoring import TokenScorer
from whet.models.snapshot import Snapshot
from whet.models.tiny import build_tiny
from whet.models.vision import vision_parts
from whet.schema.artifacts import ModelRef

KINDS = [{"type": "nf4"}, {"type": "nf4", "double": False}, {"type": "fp4"}]
TEXTS = ("What is the capital of France? The capital of France is Paris.", "Die Antwort lautet: zwölf. 答案是十二。")
SHAPES = [(5, (4, 3)), (1, (6,)), (9, ())]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers wide enough that blocks of 64 weights are ordinary, and weights large enough that answers differ."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    return build_tiny(folder, TEXTS, hidden_size=128, seed=0)


def load(checkpoint: Path, quantization: Any = None, *, adapter: Path | None = None, **options: Any) -> Any:
    config = Model.model_validate({"path": str(checkpoint), "device": "cpu", "quantization": quantization})
    ref = ModelRef(path=str(checkpoint), adapter=None if adapter is None else str(adapter))
    return load_model(ref, config, dtype=torch.float32, **options)


def trained(checkpoint: Path, quantization: Any, **options: Any) -> PeftModel:
    """An adapter that does something."""
    model = load(checkpoint, quantization, trainable=True, **options)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model: torch.nn.Module, total: torch.Tensor) -> dict[str, torch.Tensor]:
    total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("quantization", KINDS)
def test_log_probs_and_gradients_are_those_of_dequantised_weights(checkpoint: Path, quantization: Any) -> None:
    packed = pack(SHAPES)
    model = trained(checkpoint, quantization)
    # transformers' own forward pass over plain linear layers, in float64
    plain = trained(checkpoint, quantization, plain=True).double()
    assert not any(is_four_bit(p) for p in plain.parameters())
    found, expected = TokenScorer(model)(packed).logprobs, plain_logprobs(plain, packed)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)
    ours, theirs = gradients(model, found.sum()), gradients(plain, expected.sum())
    assert ours.keys() == theirs.keys() and len(ours) == 2 * 7 * 2
    for name, one in theirs.items():
        assert one.norm() > 0
        assert float((ours[name] - one).norm() / one.norm()) < 1e-5, name
    # and they are not those of the weights as they are stored
    stored = plain_logprobs(trained(checkpoint, None).double(), packed)
    assert float((stored - expected).abs().max()) > 1e-3


def test_with_dropout_peft_computes_on_the_same_weights(checkpoint: Path) -> None:
    packed, found = pack(SHAPES), []
    for plain in (False, True):
        model = trained(checkpoint, {}, plain=plain)
        for module in model.modules():
            if hasattr(module, "lora_dropout"):
                module.lora_dropout["default"] = torch.nn.Dropout(0.3)
        torch.manual_seed(3)
        found.append(TokenScorer(model.train())(packed).logprobs)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("quantization", KINDS)
def test_bytes_are_what_memory_says(checkpoint: Path, quantization: Any) -> None:
    model, whole = load(checkpoint, quantization), load(checkpoint)
    quantised = {name: p for name, p in model.named_parameters() if is_four_bit(p)}
    weights = sum(whole.get_parameter(name).numel() for name in quantised)
    taken = 0
    for p in quantised.values():
        state = p.quant_state
        scales = (state.absmax, state.state2.absmax) if state.nested else (state.absmax,)
        taken += p.nbytes + sum(scale.nbytes for scale in scales)
    assert taken / weights == pytest.approx(quantised_bytes(Quantization.model_validate(quantization)), rel=0.01)
    assert taken < 0.15 * 4 * weights


def test_what_stays_as_it_is(checkpoint: Path, tiny_vlm_checkpoint: Path) -> None:
    model = load(checkpoint, {})
    kept = {name.split(".")[-2] for name, p in model.named_parameters() if not is_four_bit(p)}
    assert kept == {"embed_tokens", "input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "norm"} | (
        {"lm_head"} if not model.config.tie_word_embeddings else set()
    )
    seeing = load(tiny_vlm_checkpoint, {})
    eyes = tuple(f"{name}." for name in vision_parts(seeing))
    four = [name for name, p in seeing.named_parameters() if is_four_bit(p)]
    assert len(four) == 7 and not any(name.startswith(eyes) for name in four)


def test_the_head_of_a_reward_model_stays_and_its_adapter_comes_back(checkpoint: Path, tmp_path: Path) -> None:
    config = Model.model_validate({"path": str(checkpoint), "device": "cpu", "quantization": {}})
    ref = ModelRef(path=str(checkpoint))
    model = load_reward_model(ref, config, RewardHead(), dtype=torch.float32, trainable=True)
    assert not is_four_bit(next(p for name, p in model.named_parameters() if "score" in name))
    assert sum(is_four_bit(p) for p in model.parameters()) == 14
    save_trained(model, load_tokenizer(str(checkpoint)), tmp_path / "reward")
    again = load_reward_model(
        ModelRef(path=str(checkpoint), adapter=str(tmp_path / "reward")), config, RewardHead(), dtype=torch.float32
    )
    assert sum(is_four_bit(p) for p in again.parameters()) == 14
    with pytest.raises(ModelError, match=r"head.freeze_backbone.*4 bits are not.*leave one of them out"):
        load_reward_model(ref, config, RewardHead(freeze_backbone=True), dtype=torch.float32, trainable=True)


def test_an_adapter_comes_back_and_says_what_it_was_trained_on(checkpoint: Path, tmp_path: Path) -> None:
    packed, model = pack(SHAPES), trained(checkpoint, {"type": "fp4", "double": False})
    save_trained(model, load_tokenizer(str(checkpoint)), tmp_path / "adapter")
    assert trained_on(str(tmp_path / "adapter")) == Quantization(type="fp4", double=False)
    with torch.no_grad():
        expected = TokenScorer(model.eval())(packed).logprobs
        again = load(checkpoint, {"type": "fp4", "double": False}, adapter=tmp_path / "adapter")
        assert torch.equal(TokenScorer(again)(packed).logprobs, expected)
    with pytest.warns(UserWarning, match=r"trained on a base in fp4 .* one in full precision"):
        load(checkpoint, adapter=tmp_path / "adapter")
    save_trained(trained(checkpoint, None), load_tokenizer(str(checkpoint)), tmp_path / "other")
    assert trained_on(str(tmp_path / "other")) is None


def test_a_snapshot_is_plain_and_follows(checkpoint: Path) -> None:
    model, packed = trained(checkpoint, {}), pack(SHAPES)
    snapshot = Snapshot(model, torch.float32)
    assert not any(is_four_bit(p) for p in snapshot.model.parameters())
    with torch.no_grad():
        for _ in range(2):
            said = TokenScorer(snapshot.model)(packed).logprobs
            torch.testing.assert_close(said, TokenScorer(model)(packed).logprobs, rtol=0, atol=1e-5)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(-1.5)
            snapshot.refresh()


def test_what_is_refused(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match=r"weights in 4 bits do not train: leave out `lora: null`"):
        Model.model_validate({"path": "x", "lora": None, "quantization": {}})
    with pytest.raises(ModelError, match="weights in 4 bits are not saved"):
        save_trained(load(checkpoint, {}), load_tokenizer(str(checkpoint)), tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    shutil.copytree(checkpoint, tmp_path / "stored")
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "stored" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"quantised already.*take the one it was made of"):
        load(tmp_path / "stored")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(RunError, match=r"^model.quantization: .*not installed .*nf4.*; pip install bitsandbytes$"):
        load(checkpoint, {})
