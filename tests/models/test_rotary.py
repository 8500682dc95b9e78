"""Queries and keys in one step: the layer's own numbers and gradients, and only where that is what they are."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.models.packed import build, pack, with_adapter
from whet.models import rotary
from whet.models.backbone import Backbone
from whet.models.norm import fuse_norms
from whet.models.rotary import TurningAttention, _Turned, fuse_rotary
from whet.models.scoring import TokenScorer

SHAPES = ((5, (7, 4)), (3, (9,)), (6, ()))


def turning(model: torch.nn.Module) -> list[TurningAttention]:
    return [module for module in model.modules() if isinstance(module, TurningAttention)]


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama", "mistral"])
def test_every_attention_layer_of_a_known_kind_is_found(name: str) -> None:
    model = build(name)
    fuse_rotary(model)
    assert len(turning(model)) == 2


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "cohere", "granite", "phi", "gpt2"])
def test_others_stay_what_they_are(name: str) -> None:
    model = build(name)
    Backbone(model)
    assert not turning(model)


def test_a_layer_that_does_more_than_its_kind_is_tried_out() -> None:
    model = build("llama")
    layer = model.model.layers[1].self_attn
    layer.register_forward_hook(lambda module, given, out: (2.0 * out[0], out[1]))
    fuse_rotary(model)
    assert len(turning(model)) == 1 and layer not in turning(model)


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama", "mistral"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("trained", [False, True])
def test_numbers_and_gradients(
    name: str, dtype: torch.dtype, tolerance: float, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an adapter over frozen weights, and with all weights trained: norms then go their own way."""
    monkeypatch.setattr(rotary, "TILE", 3 * 32)  # several tiles, the last of them shorter
    model = build(name)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data = torch.linspace(-0.5, 1.5, len(parameter))
    model = (model if trained else with_adapter(model)).to(dtype)
    packed = pack(SHAPES)
    outcomes = []
    for fused in (True, False):
        ours = copy.deepcopy(model)
        scorer = TokenScorer(ours)
        assert len(turning(ours)) == 2
        if not fused:
            for layer in turning(ours):
                layer.__class__ = type(layer).__mro__[2]
        logprobs = scorer(packed).logprobs
        logprobs.float().square().mean().backward()
        gradients = [p.grad.flatten().float() for p in ours.parameters() if p.grad is not None]
        outcomes.append((logprobs.detach().float(), torch.cat(gradients)))
    for found, expected in zip(*outcomes, strict=True):
        assert float((found - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("normalised", [True, False])
def test_against_the_formula_in_float64(normalised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotary, "TILE", 2 * 3 * 8)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 3, 8, generator=generator, requires_grad=True)
    gain, direction = (torch.randn(size, generator=generator) for size in ((8,), (5, 3, 8)))
    angle = torch.rand(5, 4, generator=generator)
    cosine, sine = (torch.cat([part, part], dim=-1) for part in (angle.cos(), angle.sin()))

    wide = x.detach().double().requires_grad_()
    n = wide / (wide.square().mean(dim=-1, keepdim=True) + 1e-3).sqrt() * gain.double() if normalised else wide
    first, second = n[..., :4], n[..., 4:]
    c, s = (part.double().unsqueeze(1) for part in (angle.cos(), angle.sin()))
    expected = torch.cat([first * c - second * s, second * c + first * s], dim=-1)
    (for_wide,) = torch.autograd.grad((expected * direction.double()).sum(), wide)

    found = _Turned.apply(x, gain if normalised else None, 1e-3, cosine, sine, torch.float32)
    (for_x,) = torch.autograd.grad((found * direction).sum(), x)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(for_x.double(), for_wide, rtol=1e-5, atol=1e-5)


def test_a_row_of_its_own_is_read_as_transformers_reads_it() -> None:
    """Padded rows, and a model that is used without this package's rows."""
    theirs = build("qwen3")
    ours = copy.deepcopy(theirs)
    fuse_norms(theirs)
    Backbone(ours)
    ids = torch.arange(1, 13).view(2, 6)
    torch.testing.assert_close(ours(input_ids=ids).logits, theirs(input_ids=ids).logits, rtol=0, atol=0)
