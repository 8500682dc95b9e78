"""RMS norms in one step: transformers' numbers and gradients, and only where that is what they are."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.models.packed import build
from whet.models import norm
from whet.models.norm import FusedNorm, fuse_norms

IDS = torch.arange(1, 25).view(2, 12)


@pytest.mark.parametrize(("name", "num", "shift"), [("qwen3", 9, 0.0), ("llama", 5, 0.0), ("gemma2", 9, 1.0)])
def test_every_norm_of_a_model_is_found(name: str, num: int, shift: float) -> None:
    model = build(name)
    fuse_norms(model)
    fused = [module for module in model.modules() if isinstance(module, FusedNorm)]
    assert len(fused) == num and {module.shift for module in fused} == {shift}


def test_layer_norms_stay_what_they_are() -> None:
    model = build("gpt2")
    fuse_norms(model)
    assert not any(isinstance(module, FusedNorm) for module in model.modules())


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_numbers_and_gradients(
    name: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norm, "TILE", 32 * 7)  # several tiles, the last of them shorter
    theirs = build(name).to(dtype).requires_grad_(False)
    for parameter in theirs.parameters():
        if parameter.ndim == 1:
            parameter.copy_(torch.linspace(-0.5, 1.5, len(parameter)))
    ours = copy.deepcopy(theirs)
    fuse_norms(ours)
    outcomes = []
    for model in (ours, theirs):
        embedded = model.get_input_embeddings()(IDS).requires_grad_()
        logits = model(inputs_embeds=embedded).logits.float()
        (gradient,) = torch.autograd.grad((logits * torch.linspace(-1, 1, logits.shape[-1])).sum(), embedded)
        outcomes.append((logits.detach(), gradient))
    for found, expected in zip(*outcomes, strict=True):
        assert float((found - expected).norm() / expected.norm()) < tolerance


def test_gradient_by_finite_differences() -> None:
    """Of a row of three by hand: y = x / sqrt(mean(x^2) + eps) * w."""
    from whet.models.norm import _Normalised

    x = torch.tensor([[1.0, -2.0, 0.5]], requires_grad=True)
    gain, direction = torch.tensor([0.5, 2.0, -1.0]), torch.tensor([[0.3, -0.7, 1.1]])

    def plain(x: torch.Tensor) -> torch.Tensor:
        return (x / (x.square().mean() + 1e-3).sqrt() * gain.double() * direction.double()).sum()

    (found,) = torch.autograd.grad((_Normalised.apply(x, gain, 1e-3) * direction).sum(), x)
    wide = x.detach().double()
    steps = 1e-6 * torch.eye(3, dtype=torch.float64)
    expected = [(plain(wide + step) - plain(wide - step)) / 2e-6 for step in steps]
    torch.testing.assert_close(found.double(), torch.stack(expected)[None], rtol=1e-5, atol=1e-6)


def test_a_trained_weight_goes_the_way_of_transformers() -> None:
    model = build("qwen3")
    fuse_norms(model)
    model(input_ids=IDS).logits.square().sum().backward()
    norm = next(module for module in model.modules() if isinstance(module, FusedNorm))
    assert norm.weight.grad is not None and float(norm.weight.grad.norm()) > 0


@pytest.mark.parametrize("what", ["bounded input", "bounded output", "epsilon behind the root", "another epsilon"])
def test_a_norm_that_differs_for_some_sizes_alone_is_left_alone(what: str) -> None:
    class OddRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(32)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.clamp(-50.0, 50.0) if what == "bounded input" else x
            size = x.pow(2).mean(-1, keepdim=True)
            match what:
                case "epsilon behind the root":
                    return self.weight * x / (size.sqrt() + self.eps * 1e2)
                case "another epsilon":
                    return self.weight * x * torch.rsqrt(size + 10 * self.eps)
                case "bounded output":
                    return self.weight * (x * torch.rsqrt(size + self.eps)).clamp(max=1.5)
            return self.weight * x * torch.rsqrt(size + self.eps)

    layer = OddRMSNorm()
    fuse_norms(layer)
    assert not isinstance(layer, FusedNorm)
