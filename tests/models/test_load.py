"""Loading: what is trainable, in which type, and one clear line for every file that cannot be used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from whet.config.model import Lora, Model
from whet.errors import ModelError
from whet.models.load import compute_dtype, end_ids, load_model, load_tokenizer, pick_device, save_trained
from whet.schema.artifacts import ModelRef

FP32 = torch.float32


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def adapter(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    config = Model(path=str(tiny_checkpoint), lora=Lora(rank=4))
    model = load_model(ModelRef(path=config.path), config, dtype=FP32, trainable=True, seed=3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_trained(model, load_tokenizer(config.path), tmp_path / "adapter")
    return tmp_path / "adapter"


def trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_a_fresh_adapter_trains_alone_in_fp32(tiny_checkpoint: Path) -> None:
    config = Model(path=str(tiny_checkpoint), lora=Lora(rank=4))
    ref = ModelRef(path=config.path)
    state = torch.get_rng_state()
    model = load_model(ref, config, dtype=torch.bfloat16, trainable=True, seed=1)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state stays"
    assert model.training and all("lora_" in name for name in trainable(model))
    assert all(p.dtype == FP32 for p in trainable(model).values())
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    same, other = (trainable(load_model(ref, config, dtype=torch.bfloat16, trainable=True, seed=s)) for s in (1, 2))
    assert all(torch.equal(p, same[name]) for name, p in trainable(model).items())
    assert any(not torch.equal(p, other[name]) for name, p in trainable(model).items())


def test_without_lora_every_weight_trains_in_fp32(tiny_checkpoint: Path) -> None:
    config = Model(path=str(tiny_checkpoint), lora=None)
    model = load_model(ModelRef(path=config.path), config, dtype=torch.bfloat16, trainable=True)
    assert not isinstance(model, PeftModel)
    assert all(p.requires_grad and p.dtype == FP32 for p in model.parameters())


def test_an_adapter_goes_on_training_from_its_weights(tiny_checkpoint: Path, adapter: Path) -> None:
    ref = ModelRef(path=str(tiny_checkpoint), adapter=str(adapter))
    state = torch.get_rng_state()
    model = load_model(ref, Model(path=ref.path, lora=Lora(rank=32)), dtype=FP32, trainable=True)
    assert torch.equal(torch.get_rng_state(), state), "a resumed run may load a reference later than it did before"
    stored = load_file(adapter / "adapter_model.safetensors")
    found = {name.replace(".default", ""): p for name, p in trainable(model).items()}
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[name].detach(), stored[name]) for name in stored)
    frozen = load_model(ref, Model(path=ref.path), dtype=FP32)
    assert not frozen.training and not trainable(frozen)


def test_a_saved_adapter_does_not_depend_on_the_process(adapter: Path) -> None:
    """peft keeps layer names in a set, whose order changes with the hash seed of the process."""
    names = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    assert len(names) > 5 and names == sorted(names)
    assert (adapter / "tokenizer.json").is_file() and (adapter / "chat_template.jinja").is_file()


def test_a_trained_checkpoint_says_nothing_of_the_training(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What is written is an ordinary checkpoint: fast to generate with, tied as before."""
    config = Model(path=str(tiny_checkpoint), lora=None)
    model = load_model(ModelRef(path=config.path), config, dtype=FP32, trainable=True)
    save_trained(model, load_tokenizer(config.path), tmp_path / "out")
    before, after = (json.loads((p / "config.json").read_text()) for p in (tiny_checkpoint, tmp_path / "out"))
    assert after == before
    one, other = (load_file(p / "model.safetensors") for p in (tiny_checkpoint, tmp_path / "out"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_ends_of_a_turn(tiny_checkpoint: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_checkpoint))
    model = load_model(ModelRef(path=str(tiny_checkpoint)), Model(path=str(tiny_checkpoint)), dtype=FP32)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 5]
    assert end_ids(tokenizer, model) == (tokenizer.eos_token_id, 5)
    model.generation_config.eos_token_id = None
    assert end_ids(tokenizer, model) == (tokenizer.eos_token_id,)


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    for name in ("cuda", "mps", "npu"):
        with pytest.raises(ModelError, match=rf"^reference\.device: torch finds no such device .*found '{name}'.*cpu"):
            pick_device(name, field="reference.device")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert pick_device("auto") == pick_device("mps") == torch.device("mps")
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ModelError, match=r"found 'cuda'"):
        pick_device("cuda")


def test_a_model_is_not_loaded_for_a_device_that_is_not_there(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"^model\.device: torch finds no such device"):
        load_model(
            ModelRef(path=str(tiny_checkpoint)), Model(path=str(tiny_checkpoint), device="cuda"), dtype=torch.float32
        )


def test_arithmetic() -> None:
    cpu = torch.device("cpu")
    assert [compute_dtype(p, cpu) for p in ("auto", "fp32", "bf16", "fp16")] == [
        FP32,
        FP32,
        torch.bfloat16,
        torch.float16,
    ]


def drop_weight(file: Path) -> None:
    tensors = load_file(file)
    del tensors[min(name for name in tensors if "mlp" in name)]
    save_file(tensors, file, metadata={"format": "pt"})


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda d: (d / "model.safetensors").unlink(), "without safetensors weights"),
        (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "convert pytorch_model.bin"),
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: (d / "config.json").write_text("{"), "cannot load the weights"),
        (lambda d: (d / "config.json").write_text("[]"), "cannot load the weights"),
        (lambda d: edit(d / "config.json", hidden_size="wide"), "cannot load the weights"),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "cannot load the weights"),
        (lambda d: os.truncate(d / "model.safetensors", 9000), "cannot load the weights"),
        (lambda d: edit(d / "config.json", intermediate_size=64), "cannot load the weights"),
        (lambda d: drop_weight(d / "model.safetensors"), "1 weights are missing"),
        (lambda d: (d / "model.safetensors.index.json").write_text("{}"), "cannot load the weights"),
    ],
)
def test_spoiled_checkpoints_are_one_line(spoil: Callable[[Path], None], says: str, checkpoint: Path) -> None:
    spoil(checkpoint)
    with pytest.raises(ModelError, match=says) as caught:
        load_model(ModelRef(path=str(checkpoint)), Model(path=str(checkpoint)), dtype=FP32)
    assert "\n" not in str(caught.value) and "model.path" in str(caught.value)


def test_quantised_checkpoints_do_not_train(checkpoint: Path, adapter: Path) -> None:
    """What is saved of them would have lost its scales."""
    edit(checkpoint / "config.json", quantization_config={"quant_method": "fp8"})
    config = Model(path=str(checkpoint), lora=None)
    under_adapter = ModelRef(path=config.path, adapter=str(adapter))
    for ref, trainable in ((ModelRef(path=config.path), True), (under_adapter, False)):
        with pytest.raises(ModelError, match=r"model.path: a checkpoint that is quantised already .*, fp8\); take the"):
            load_model(ref, config, dtype=FP32, trainable=trainable)


def test_memory_that_runs_out_is_not_the_files_doing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_model(ModelRef(path=str(checkpoint)), Model(path=str(checkpoint)), dtype=FP32)


def test_an_adapter_on_embeddings_needs_none_of_the_bases_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """peft writes them beside the adapter, unless it is told not to."""
    config = Model(path=str(tiny_checkpoint), lora=Lora(rank=4, targets=("embed_tokens",)))
    model = load_model(ModelRef(path=config.path), config, dtype=FP32, trainable=True)
    for name, parameter in model.named_parameters():
        if "lora_embedding" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_trained(model, load_tokenizer(config.path), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    own = {name: tensor for name, tensor in tensors.items() if ".base_layer." not in name}
    assert len(own) == 2 < len(tensors)
    save_file(own, file, metadata={"format": "pt"})
    again = load_model(ModelRef(path=config.path, adapter=str(tmp_path / "adapter")), config, dtype=FP32)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda d: (d / "adapter_config.json").unlink(), "adapter_config.json is missing"),
        *((lambda d, text=text: (d / "adapter_config.json").write_text(text), "cannot load the adapter")
          for text in ("{}", "[]", "null", "{")),
        (lambda d: (d / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
        (lambda d: os.truncate(d / "adapter_model.safetensors", 500), "cannot load the adapter"),
        (lambda d: drop_weight(d / "adapter_model.safetensors"), "1 weights are missing"),
        (lambda d: edit(d / "adapter_config.json", r=7), "cannot load the adapter"),
        (lambda d: edit(d / "adapter_config.json", target_modules=["nothing"]), "cannot load the adapter"),
    ],
)
def test_spoiled_adapters_are_one_line(
    spoil: Callable[[Path], None], says: str, tiny_checkpoint: Path, adapter: Path
) -> None:
    spoil(adapter)
    ref = ModelRef(path=str(tiny_checkpoint), adapter=str(adapter))
    with pytest.raises(ModelError, match=says) as caught:
        load_model(ref, Model(path=ref.path), dtype=FP32)
    assert "\n" not in str(caught.value) and "model.adapter" in str(caught.value)


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/dir", "no/such/dir"])
def test_a_path_that_is_not_there(path: str) -> None:
    with pytest.raises(ModelError, match="no such directory"):
        load_model(ModelRef(path=path), Model(path=path), dtype=FP32)


def test_a_misspelt_path_names_its_neighbour(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match=rf"did you mean {checkpoint}\?"):
        load_tokenizer(str(checkpoint.with_name("chekpoint")))


def test_tokenizers(checkpoint: Path, tmp_path: Path) -> None:
    template = tmp_path / "plain.jinja"
    template.write_text("{{ messages[0].content }}")
    tokenizer = load_tokenizer(str(checkpoint), chat_template=str(template))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    with pytest.raises(ModelError, match=r"model.chat_template: no such file"):
        load_tokenizer(str(checkpoint), chat_template=str(tmp_path / "none.jinja"))
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_tokenizer(str(checkpoint))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["{", "[1]", '{"model": 1, "added_tokens": []}'])
def test_spoiled_tokenizers_are_one_line(file: str, text: str, checkpoint: Path) -> None:
    """The libraries raise KeyError, TypeError, AttributeError and bare Exceptions on these."""
    (checkpoint / file).write_text(text)
    try:
        load_tokenizer(str(checkpoint))
    except ModelError as error:
        assert "no usable tokenizer" in str(error) and "\n" not in str(error)
    else:
        assert file == "tokenizer_config.json" and text.startswith('{"'), "words that nobody asks for do no harm"


def test_lora_targets_that_do_not_exist(tiny_checkpoint: Path) -> None:
    config = Model(path=str(tiny_checkpoint), lora=Lora(targets=("nothing",)))
    with pytest.raises(ModelError, match=r"model.lora.targets: no such layers"):
        load_model(ModelRef(path=config.path), config, dtype=FP32, trainable=True)
