"""Gated feed-forward layers in one step: the numbers and gradients of separate ones, with less kept."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu

from tests.models.packed import build, with_adapter
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
