"""The reference policy: the model before it was trained, however that is come by."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.models.packed import build, pack, with_adapter
from whet.errors import ModelError
from whet.models.load import save_trained
from whet.models.reference import SecondModel, by_adapter
from whet.models.scoring import TokenScorer

SHAPES = [(5, (3, 7)), (4, (1, 2))]


def disturb(model: torch.nn.Module) -> None:
    """As training would."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def trained_names(model: torch.nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_an_adapter_switched_off_is_the_base() -> None:
    packed, base = pack(SHAPES), build("qwen3")
    expected = TokenScorer(copy.deepcopy(base))(packed).logprobs
    model = with_adapter(base).train()
    scorer = TokenScorer(model)
    assert not torch.allclose(scorer(packed).logprobs, expected, atol=1e-2)
    before = trained_names(model)
    torch.testing.assert_close(by_adapter(scorer, None)(packed), expected)
    assert trained_names(model) == before and model.training
    assert not torch.allclose(scorer(packed).logprobs, expected, atol=1e-2)


def test_training_goes_on_from_an_adapter_and_is_compared_with_its_copy(tmp_path: Path) -> None:
    packed = pack(SHAPES)
    start = with_adapter(build("qwen3"))
    start.save_pretrained(tmp_path)
    expected = TokenScorer(start)(packed).logprobs.detach()
    model = PeftModel.from_pretrained(build("qwen3"), str(tmp_path), is_trainable=True).train()
    names = trained_names(model)
    scorer = TokenScorer(model)
    reference = by_adapter(scorer, str(tmp_path))
    disturb(model)
    torch.testing.assert_close(reference(packed), expected)
    assert not torch.allclose(scorer(packed).logprobs, expected, atol=1e-2)
    assert model.training and model.active_adapter == "default"
    assert [name for name in trained_names(model) if "reference" not in name] == names
    scorer(packed).logprobs.sum().backward()
    assert all(p.grad is None for name, p in model.named_parameters() if ".reference." in name)


def test_the_frozen_copy_is_neither_trained_nor_saved(tmp_path: Path) -> None:
    start = with_adapter(build("qwen3"))
    start.save_pretrained(tmp_path / "start")
    model = PeftModel.from_pretrained(build("qwen3"), str(tmp_path / "start"), is_trainable=True)
    scorer = TokenScorer(model)
    reference = by_adapter(scorer, str(tmp_path / "start"))
    reference(pack(SHAPES))
    assert not [name for name in trained_names(model) if ".reference." in name]

    class Tokenizer:
        def save_pretrained(self, directory: Path) -> None:
            pass

    save_trained(model, Tokenizer(), tmp_path / "saved")  # type: ignore[arg-type]
    assert sorted(p.name for p in (tmp_path / "saved").iterdir() if p.is_dir()) == []


def test_a_second_model_is_loaded_once_when_it_is_first_asked() -> None:
    packed, loads = pack(SHAPES), list[torch.device]()

    def load(device: torch.device) -> torch.nn.Module:
        loads.append(device)
        return build("qwen3")

    second = SecondModel(load, torch.device("cpu"), fall_back=True)
    assert loads == []
    first = second(packed)
    assert torch.equal(first, second(packed)) and loads == [torch.device("cpu")]
    assert not first.requires_grad
    torch.testing.assert_close(first, TokenScorer(build("qwen3"))(packed).logprobs)


def test_a_model_that_is_released_is_gone_and_comes_back_when_it_is_asked() -> None:
    packed, made = pack(SHAPES), list[weakref.ref[torch.nn.Module]]()

    def load(device: torch.device) -> torch.nn.Module:
        model = build("qwen3")
        made.append(weakref.ref(model))
        return model

    second = SecondModel(load, torch.device("cpu"), fall_back=True)
    second.release()  # nothing has been loaded
    first = second(packed)
    assert made[0]() is not None
    second.release()
    assert made[0]() is None
    assert torch.equal(first, second(packed)) and len(made) == 2


def test_out_of_memory_moves_the_second_model_to_the_cpu_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    packed = pack(SHAPES)

    def load(device: torch.device) -> torch.nn.Module:
        if device.type != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return build("qwen3")

    second = SecondModel(load, torch.device("cuda"), fall_back=True)
    torch.testing.assert_close(second(packed), TokenScorer(build("qwen3"))(packed).logprobs.detach())
    assert second.device.type == "cpu"
    assert "no room for the reference model on cuda" in capsys.readouterr().err
    second(packed)
    assert capsys.readouterr().out == ""
    with pytest.raises(torch.OutOfMemoryError):
        SecondModel(load, torch.device("cuda"), fall_back=False)(packed)


def test_an_adapter_that_trains_biases_has_no_second_copy_and_says_so_in_one_line(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", bias="lora_only")
    get_peft_model(build("qwen2"), config).save_pretrained(tmp_path)
    scorer = TokenScorer(PeftModel.from_pretrained(build("qwen2"), str(tmp_path), is_trainable=True))
    with pytest.raises(ModelError, match=r"^model\.adapter: the reference cannot be a second copy") as caught:
        by_adapter(scorer, str(tmp_path))
    assert "\n" not in str(caught.value) and "put a merge stage before" in str(caught.value)
