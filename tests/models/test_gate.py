"""Gated feed-forward layers in one step: the numbers and gradients of separate ones, with less kept."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu

from tests.models.packed import ARCHITECTURES, build, with_adapter
from whet.models import gate
from whet.models.gate import FusedGate, _Gated, fuse_gates

IDS = torch.arange(1, 41).view(2, 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral"])
def test_nothing_changes(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "TILE", 48 * 7)  # several tiles, the last of them shorter
    plain, fused = (with_adapter(build(name)).to(dtype) for _ in range(2))
    fuse_gates(fused)
    assert sum(isinstance(module, FusedGate) for module in fused.modules()) == 2
    found = []
    for model in (plain, fused):
        loss = model(input_ids=IDS).logits.float().square().sum()
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    for ours, theirs in zip(*found, strict=True):
        assert float((ours - theirs).norm()) <= (1e-5 if dtype == torch.float32 else 2e-2) * float(theirs.norm())


def test_its_gradient_by_differences() -> None:
    given = [torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(_Gated.apply, given)


def test_only_what_it_needs_is_kept() -> None:
    kept = []
    gate, up = (torch.randn(4, 6, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        out = _Gated.apply(gate * 1, up * 1)
    assert sum(x.shape == (4, 6) for x in kept) == 2
    torch.testing.assert_close(out, silu(gate) * up)


def test_layers_of_another_kind_are_left_alone() -> None:
    for name in ("gemma2", "gpt2"):  # GELU, and no gate
        model = build(name)
        fuse_gates(model)
        assert not any(isinstance(module, FusedGate) for module in model.modules())


class BoundedMLP(torch.nn.Module):
    """DeepSeek-V4's, and with `after` Step-3.7's: SwiGLU up to a bound."""

    def __init__(self, limit: float, halves: str) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = torch.nn.Linear(32, 48, bias=False), torch.nn.Linear(32, 48, bias=False)
        self.down_proj = torch.nn.Linear(48, 32, bias=False)
        self.limit, self.halves = limit, halves

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.halves in ("gate", "both"):
            gate = gate.clamp(max=self.limit)
        gate = silu(gate)
        if self.halves == "after":
            gate = gate.clamp(max=self.limit)
        if self.halves in ("up", "both"):
            up = up.clamp(min=-self.limit, max=self.limit)
        return self.down_proj(gate * up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("limit", [10.0, 16.0])
@pytest.mark.parametrize("halves", ["gate", "up", "both", "after"])
def test_a_bound_that_only_large_numbers_meet_is_found(
    halves: str, limit: float, size: float, dtype: torch.dtype
) -> None:
    """Whatever the size of the weights; and the same layer without one is fused."""
    torch.manual_seed(0)
    for kind, fused in ((halves, False), ("none", True)):
        layer = BoundedMLP(limit, kind).to(dtype)
        with torch.no_grad():
            layer.gate_proj.weight.mul_(size)
            layer.up_proj.weight.mul_(size)
        fuse_gates(layer)
        assert isinstance(layer, FusedGate) == fused


def test_infinite_numbers_are_not_taken_for_equal_ones() -> None:
    """Both would be infinite, with a bound and without."""
    layer = BoundedMLP(10.0, "both").to(torch.float16)
    with torch.no_grad():
        layer.down_proj.weight.fill_(60000.0)
    fuse_gates(layer)
    assert not isinstance(layer, FusedGate)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama", "mistral", "granite", "cohere", "hyperclovax"])
def test_a_true_one_is_fused_in_every_type(name: str, dtype: torch.dtype) -> None:
    model = build(name).to(dtype)
    fuse_gates(model)
    assert name in ARCHITECTURES and sum(isinstance(module, FusedGate) for module in model.modules()) == 2
