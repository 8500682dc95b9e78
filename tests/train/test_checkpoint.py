"""A killed training goes on bit for bit however its weights are held, and a checkpoint has exactly what that takes."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.standin import standin
from whet.config.train import Train
from whet.runs.files import read_jsonl
from whet.train import narrow
from whet.train.loop import Loop
from whet.train.parallel import Parallel

MODES = ("fp32", "bf16_master", "bf16_stochastic")
ADAMW = ("step", "exp_avg", "exp_avg_sq")


class Killed(BaseException):
    """Stands for a kill: nothing in the package may catch it."""


@pytest.fixture
def sft(make_model, make_rows, collate, make_loop) -> Callable[..., Loop[Any]]:
    """Six steps over 10 rows, micro-batches of one row, a checkpoint every two."""

    def make(model: torch.nn.Module, folder: str, **train: Any) -> Loop[Any]:
        rows = make_rows(10)
        settings = {"batch_size": 4, "epochs": 2, "save_every": 2, "weight_decay": 0.01, "learning_rate": 1e-3}
        settings |= {"micro_batch_tokens": 1, "precision": "bf16"} | train
        loop: Loop[Any] = make_loop(
            model, rows, collate(rows), Train(**settings), folder=folder, dtype=torch.bfloat16
        )
        loop.parallel = Parallel(torch.device("cpu"), torch.bfloat16)
        return loop

    return make


def reloaded(loop: Loop[Any], base: torch.nn.Module) -> torch.nn.Module:
    """The model as a stage loads it again: in fp32, from the newest checkpoint."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = loop.checkpoints.folder(loop.checkpoints.latest().step) / "model"
    if (folder / "adapter_config.json").exists():
        return PeftModel.from_pretrained(copy.deepcopy(base).unload(), folder, is_trainable=True).train()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()


def kill_at(loop: Loop[Any], step: int) -> None:
    write = loop.metrics.write

    def writing(row: Any) -> None:
        write(row)
        if row["step"] == step:
            raise Killed

    loop.metrics.write = writing  # type: ignore[method-assign]
    with pytest.raises(Killed):
        loop.fit()
    loop.metrics.close()


def log(loop: Loop[Any]) -> list[dict[str, Any]]:
    clock = ("step_seconds", "peak_memory_bytes")
    return [{k: v for k, v in row.items() if k not in clock} for row in read_jsonl(loop.metrics.path)]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize(
    ("mode", "part"), [("fp32", None), *((mode, part) for mode in MODES[1:] for part in (1 << 22, 1024))]
)
def test_resumed_bit_for_bit(
    mode: str, part: int | None, optimizer: str, lora: bool, sft, make_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log, weights and the last checkpoint's bytes; `part` numbers are in fp32 at a time."""
    if optimizer == "adamw_8bit":
        monkeypatch.setitem(sys.modules, "bitsandbytes", standin())
    monkeypatch.setattr(narrow, "PART", part)
    model, train = make_model(lora=lora, dropout=0.3 if lora else 0.0), {"weights": mode, "optimizer": optimizer}
    straight = sft(copy.deepcopy(model), "straight", **train)
    expected = straight.fit()
    killed = sft(copy.deepcopy(model), "killed", **train)
    kill_at(killed, 5)
    assert killed.checkpoints.latest().step == 4
    torch.manual_seed(12345)  # a new process has another random state
    again = sft(reloaded(killed, model), "killed", **train)
    assert again.fit() == expected
    assert log(again) == log(straight)
    folder, other = straight.checkpoints.folder(6), again.checkpoints.folder(6)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        assert (folder / file).read_bytes() == (other / file).read_bytes(), file


@pytest.mark.parametrize("mode", MODES)
def test_the_file_has_exactly_what_it_takes(mode: str, sft, make_model) -> None:
    model = make_model()
    loop = sft(model, "stage", weights=mode, max_steps=2)
    loop.fit()
    folder = loop.checkpoints.folder(2)
    read, num = load_file(folder / "optimizer.safetensors"), len(list(model.parameters()))
    match mode:
        case "fp32":
            assert set(read) == {f"{n}.{name}" for n in range(num) for name in ADAMW}
        case "bf16_master":
            names = (*ADAMW, "remainder")
            assert set(read) == {"steps"} | {f"{n}.0.{name}" for n in range(num) for name in names}
            assert all(t.dtype == torch.int16 for name, t in read.items() if name.endswith("remainder"))
        case "bf16_stochastic":
            assert set(read) == {"steps"} | {f"{n}.0.{name}" for n in range(num) for name in ADAMW}
    averages = [t for name, t in read.items() if "exp_avg" in name]
    assert all(t.dtype == torch.float32 for t in averages)
    assert sum(t.numel() for t in averages) == 2 * sum(p.numel() for p in model.parameters())
    held = torch.float32 if mode == "fp32" else torch.bfloat16
    assert {t.dtype for t in load_file(folder / "model" / "model.safetensors").values()} == {held}
    assert {path.name for path in folder.iterdir()} == {
        "model", "optimizer.safetensors", "random.safetensors", "state.json",
    }  # fmt: skip


def test_the_master_is_the_checkpoints_weights_and_remainders(sft, make_model) -> None:
    """Weights of the model file and remainders of the optimiser's are the fp32 weights; bf16 alone is not."""
    from whet.train.rounding import join

    model = make_model()
    loop = sft(model, "stage", weights="bf16_master", max_steps=2)
    loop.fit()
    folder = loop.checkpoints.folder(2)
    read = load_file(folder / "optimizer.safetensors")
    saved = load_file(folder / "model" / "model.safetensors")
    for number, (name, parameter) in enumerate(model.named_parameters()):
        master = torch.empty(parameter.numel())
        join(saved[name].view(-1), read[f"{number}.0.remainder"], master)
        assert torch.equal(saved[name], parameter)
        nearest = (master.double() - parameter.detach().double().view(-1)).abs()
        assert (nearest <= (master.bfloat16().double() - master.double()).abs()).all()
        assert parameter.ndim < 2 or (nearest > 0).float().mean() > 0.9
