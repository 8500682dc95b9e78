"""bitsandbytes' optimisers: the real package where it is installed, and a stand-in with its state everywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from tests.train.standin import standin
from whet.config.train import Train
from whet.errors import RunError
from whet.train.checkpoint import load_optimizer, optimizer_tensors
from whet.train.narrow import NarrowWeights
from whet.train.optim import Optimizer, build_optimizer


@pytest.fixture(params=["stand-in", "installed"])
def bitsandbytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if request.param == "installed":
        return pytest.importorskip("bitsandbytes")
    monkeypatch.setitem(sys.modules, "bitsandbytes", standin())
    return sys.modules["bitsandbytes"]


class Small(torch.nn.Module):
    """An embedding, a matrix and a bias; the first two have enough numbers for 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(100, 64)
        self.layer = torch.nn.Linear(64, 80)


def give_gradients(model: torch.nn.Module, step: int) -> None:
    torch.manual_seed(100 + step)
    for p in model.parameters():
        p.backward(torch.randn_like(p) * torch.rand_like(p))


def steps(model: torch.nn.Module, optimizer: object, first: int, last: int) -> None:
    assert isinstance(optimizer, NarrowWeights | torch.optim.Optimizer)
    for step in range(first, last):
        give_gradients(model, step)
        optimizer.step()
        optimizer.zero_grad()


SETTINGS = {"learning_rate": 1e-2, "weight_decay": 0.1, "betas": (0.8, 0.95)}


def test_matrices_have_8_bits_embeddings_and_vectors_32(bitsandbytes: ModuleType) -> None:
    model = Small()
    optimizer = build_optimizer(model, Train(optimizer="adamw_8bit"))
    assert isinstance(optimizer, bitsandbytes.optim.AdamW8bit)
    found = {name: optimizer.state[p]["state1"].dtype for name, p in model.named_parameters()}
    assert found == {"words.weight": torch.float32, "layer.weight": torch.uint8, "layer.bias": torch.float32}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0]
    decayed = build_optimizer(model, Train(optimizer="adamw_8bit", **SETTINGS))
    assert [(g["weight_decay"], len(g["params"])) for g in decayed.param_groups] == [(0.1, 2), (0.0, 1)]
    assert all(group["betas"] == (0.8, 0.95) and group["lr"] == 1e-2 for group in decayed.param_groups)


@pytest.mark.parametrize("weights", ["fp32", "bf16_master", "bf16_stochastic"])
def test_follows_adamw(weights: str, bitsandbytes: ModuleType) -> None:
    """Ten steps of the same gradients: what has 32 bits ends where torch's AdamW does, the rest near it."""
    ends, start = {}, {name: p.detach().clone() for name, p in Small().named_parameters()}
    for kind in ("adamw", "adamw_8bit"):
        model = Small()
        steps(model, build_optimizer(model, Train(optimizer=kind, weights=weights, **SETTINGS)), 0, 10)
        ends[kind] = {name: p.detach().float() for name, p in model.named_parameters()}
    for name, exact in ends["adamw"].items():
        way = (exact - start[name]).norm()
        apart = float((ends["adamw_8bit"][name] - exact).norm() / way)
        assert apart < (0.1 if name == "layer.weight" else 0.02), name
        assert way > 0


@pytest.mark.parametrize("weights", ["fp32", "bf16_master", "bf16_stochastic"])
def test_goes_on_bit_for_bit(weights: str, bitsandbytes: ModuleType) -> None:
    stopped_and_started(Small, Train(optimizer="adamw_8bit", weights=weights, **SETTINGS))


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["fp32", "bf16_master", "bf16_stochastic"])
@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_goes_on_bit_for_bit_on_a_gpu(kind: str, weights: str) -> None:
    """With states large enough to be paged; they are paged again after loading."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if kind != "adamw":
        pytest.importorskip("bitsandbytes")

    def large() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Linear(400, 400).cuda()

    optimizer = stopped_and_started(large, Train(optimizer=kind, weights=weights, **SETTINGS))
    inner = optimizer._held[0].parts[0].inner if isinstance(optimizer, NarrowWeights) else optimizer
    state = next(iter(inner.state.values()))
    assert getattr(state.get("state1"), "is_paged", False) == kind.startswith("paged")


def stopped_and_started(make: Callable[[], torch.nn.Module], train: Train) -> Optimizer:
    """Six steps against three, a checkpoint, and three; returns the optimiser that was loaded."""
    straight = make()
    optimizer = build_optimizer(straight, train)
    steps(straight, optimizer, 0, 3)
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    stopped = {name: p.detach().clone() for name, p in straight.named_parameters()}
    steps(straight, optimizer, 3, 6)
    again = make()
    for name, p in again.named_parameters():
        p.data = stopped[name].float()
    fresh = build_optimizer(again, train)
    load_optimizer(fresh, saved)
    steps(again, fresh, 3, 6)
    for one, other in zip(straight.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    after, expected = optimizer_tensors(fresh), optimizer_tensors(optimizer)
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[name], expected[name]) for name in expected)
    return fresh


def test_what_is_saved(bitsandbytes: ModuleType, tmp_path) -> None:
    """All tensors, each of its own memory although the tables are shared: safetensors takes nothing else."""
    from safetensors.torch import load_file, save_file

    model = Small()
    model.second = torch.nn.Linear(64, 80, bias=False)
    optimizer = build_optimizer(model, Train(optimizer="adamw_8bit"))
    steps(model, optimizer, 0, 2)
    save_file(optimizer_tensors(optimizer), tmp_path / "optimizer.safetensors")
    read = load_file(tmp_path / "optimizer.safetensors")
    wide = ("step", "state1", "state2")
    narrow = (*wide, "qmap1", "qmap2", "absmax1", "absmax2")
    # In the order of the groups: matrices (embedding, two layers), then the bias.
    assert set(read) == {f"{n}.{name}" for n, names in enumerate((wide, narrow, narrow, wide)) for name in names}
    assert read["1.state1"].dtype == torch.uint8 and read["1.absmax1"].shape == (20,)
    assert all(int(read[f"{n}.step"]) == 2 for n in range(4))


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(RunError, match=r"^train.optimizer: .*not installed .*adamw_8bit.*; pip install bitsandbytes$"):
        build_optimizer(Small(), Train(optimizer="adamw_8bit"))


@pytest.mark.parametrize("kind", ["paged_adamw", "paged_adamw_8bit"])
def test_nothing_to_page_on_a_cpu(kind: str) -> None:
    wanted = kind.removeprefix("paged_")
    with pytest.raises(RunError, match=rf"no GPU memory to page .*{kind} on a CPU.*; use {wanted}$"):
        build_optimizer(Small(), Train(optimizer=kind))


def test_a_release_without_kernels_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    package = standin()
    monkeypatch.setattr(package.optim.AdamW8bit, "devices", ())
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    with pytest.raises(RunError, match=r"does not run on cpu .*use adamw, .*no kernel for cpu"):
        build_optimizer(Small(), Train(optimizer="adamw_8bit"))
