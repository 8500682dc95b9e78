"""Checkpoints written tensor by tensor, as transformers reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from whet.models import parts
from whet.models.parts import Gathered, Parts, checkpoint_tensors, save_in_parts, write_checkpoint, write_tensors


def plain(asked: list[Tensor] | None = None, *, writes: bool = True) -> Parts:
    """Weights that are whole already; `asked` gets each that is gathered."""

    def whole(tensor: Tensor) -> Tensor:
        if asked is not None:
            asked.append(tensor)
        return tensor.detach()

    return Parts(whole=whole, shape=lambda tensor: tuple(tensor.shape), writes=writes)


@pytest.fixture
def model(tiny_checkpoint: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    return loaded


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_it_is_the_checkpoint_that_transformers_writes(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "theirs")
    save_in_parts(model, tmp_path / "ours", plain())
    assert equal(load_file(tmp_path / "theirs/model.safetensors"), load_file(tmp_path / "ours/model.safetensors"))
    ours, theirs = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "theirs"))
    assert ours == theirs
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert equal(dict(again.state_dict()), dict(model.state_dict()))


def test_a_large_one_is_several_files_and_an_index(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "FILE_BYTES", 20_000)
    save_in_parts(model, tmp_path, plain())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert equal(dict(again.state_dict()), dict(model.state_dict()))


def test_tied_weights_stand_once(model: PreTrainedModel) -> None:
    assert model.config.tie_word_embeddings
    names = [tensor.name for tensor in checkpoint_tensors(model, plain())]
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
    assert len(names) == len(set(names))


def test_every_rank_gathers_in_the_order_of_the_one_that_writes(model: PreTrainedModel, tmp_path: Path) -> None:
    writer: list[Tensor] = []
    helper: list[Tensor] = []
    save_in_parts(model, tmp_path / "kept", plain(writer))
    save_in_parts(model, tmp_path / "nothing", plain(helper, writes=False))
    assert [id(tensor) for tensor in writer] == [id(tensor) for tensor in helper] and writer
    assert not (tmp_path / "nothing").exists()


def test_types_and_scalars(tmp_path: Path) -> None:
    tensors = {
        "step": torch.tensor(3.0), "empty": torch.zeros(0, 4), "half": torch.randn(3, 5).bfloat16(),
        "count": torch.arange(7), "wide": torch.randn(2, 3, dtype=torch.float64), "flags": torch.tensor([True, False]),
    }  # fmt: skip
    described = [Gathered(name, t.dtype, tuple(t.shape), lambda t=t: t) for name, t in tensors.items()]  # type: ignore[misc]
    write_tensors(described, tmp_path / "a.safetensors")
    assert equal(load_file(tmp_path / "a.safetensors"), tensors)
    write_checkpoint(described, tmp_path)
    assert equal(load_file(tmp_path / "model.safetensors"), tensors)
