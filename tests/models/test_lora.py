"""An adapted layer in one step: peft's numbers, gradients and files."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import layer as peft_lora

from tests.models.packed import build, with_adapter
from whet.models.lora import FusedLinear, fuse_adapters

IDS = torch.arange(1, 25).view(2, 12)


def pair(name: str = "qwen3") -> tuple[torch.nn.Module, torch.nn.Module]:
    """The same adapted model as peft has it, and fused."""
    ours = with_adapter(build(name))
    theirs = copy.deepcopy(ours)
    fuse_adapters(ours)
    assert any(isinstance(module, FusedLinear) for module in ours.modules())
    return ours, theirs


def outcome(model: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    logits = model(input_ids=IDS).logits
    (logits.float() * torch.linspace(-1, 1, logits.shape[-1])).sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "gemma2"])
def test_in_double_precision(name: str) -> None:
    """qwen2's projections have biases."""
    ours, theirs = (model.double() for model in pair(name))
    (found, gradients), (expected, their_gradients) = outcome(ours), outcome(theirs)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert gradients.keys() == their_gradients.keys() and all("lora" in name for name in gradients)
    for key, gradient in gradients.items():
        assert float((gradient - their_gradients[key]).norm()) <= 1e-5 * float(their_gradients[key].norm())


def test_under_autocast() -> None:
    ours, theirs = pair()
    for model in (ours, theirs):
        for name, parameter in model.named_parameters():
            if "lora" not in name:
                parameter.data = parameter.data.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found, gradients), (expected, their_gradients) = outcome(ours), outcome(theirs)
    assert float((found - expected).float().norm() / expected.float().norm()) < 0.05
    flat = [torch.cat([g[key].flatten() for key in sorted(g)]) for g in (gradients, their_gradients)]
    assert float((flat[0] - flat[1]).norm() / flat[1].norm()) < 0.1
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())


@pytest.mark.parametrize("state", ["disabled", "merged", "two adapters", "dropout", "trained base"])
def test_what_is_not_plain_goes_the_way_of_peft(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pair()
    used: list[bool] = []
    monkeypatch.setattr(FusedLinear, "_plain_adapter", spied(FusedLinear._plain_adapter, used))
    for model in (ours, theirs):
        match state:
            case "disabled":
                model.base_model.disable_adapter_layers()
            case "merged":
                model.merge_adapter()
            case "two adapters":
                torch.manual_seed(4)
                model.add_adapter("second", model.peft_config["default"])
                model.base_model.set_adapter(["default", "second"])
            case "dropout":
                for module in model.modules():
                    if isinstance(module, peft_lora.Linear):
                        module.lora_dropout["default"] = torch.nn.Dropout(0.5)
                model.train()
            case "trained base":
                model.requires_grad_(True)
    found = []
    for model in (ours, theirs):
        torch.manual_seed(5)
        found.append(model(input_ids=IDS).logits)
    torch.testing.assert_close(found[0], found[1])
    assert not any(used) or state == "trained base"


def spied(plain, used: list[bool]):
    def wrapped(self):
        name = plain(self)
        used.append(name is not None)
        return name

    return wrapped


def test_files_and_copies_are_those_of_peft(tmp_path: Path) -> None:
    ours, _ = pair()
    ours.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("qwen3"), str(tmp_path))
    torch.testing.assert_close(loaded(input_ids=IDS).logits, ours(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(copy.deepcopy(ours)(input_ids=IDS).logits, ours(input_ids=IDS).logits)
    merged = ours.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=IDS).logits, loaded(input_ids=IDS).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_a_bias_that_trains_has_pefts_gradient(bias: str) -> None:
    """qwen2's projections have biases."""
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", bias=bias)
    ours = get_peft_model(build("qwen2"), config)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    theirs = copy.deepcopy(ours)
    fuse_adapters(ours)
    (found, gradients), (expected, their_gradients) = outcome(ours), outcome(theirs)
    torch.testing.assert_close(found, expected)
    assert gradients.keys() == their_gradients.keys() and sum("bias" in name for name in gradients) >= 4
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-4, atol=1e-4)


def test_a_bias_on_a_layer_in_4_bits_has_a_gradient() -> None:
    """As far as it does not take bitsandbytes: a weight that is not in 4 bits is itself."""
    from whet.models.four_bit import _Product

    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, bias: _Product.apply(x, weight, bias), (x, bias))
