"""The lean step against the checkpoint's own layers, and who is given it."""

from __future__ import annotations

import pytest
import torch

from tests.models.packed import VOCABULARY, build, with_adapter
from whet.models.backbone import Backbone
from whet.models.decoding import KeyValues
from whet.models.lean_step import LeanStep
from whet.models.rows import from_trees
from whet.models.snapshot import Snapshot
from whet.schema.packed import Tree

LEAN = ["qwen3", "qwen2", "llama", "mistral"]


def shaken(name: str) -> torch.nn.Module:
    """No weight at the value it starts with: the ones of a norm would hide it."""
    model = build(name).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.05)
    return model


@torch.no_grad()
def decoded(model: torch.nn.Module, *, lean: bool, steps: int = 4) -> torch.Tensor:
    """[steps * 3, H] of two prompts with two rows and one, the same tokens either way."""
    backbone, memory = Backbone(model), KeyValues()
    backbone.__dict__["_is_lean"] = lean
    ids = torch.randint(1, VOCABULARY, (30,), generator=torch.Generator().manual_seed(2))
    memory.enter(backbone.prompts(from_trees(ids, (Tree(0, 9), Tree(9, 21))))[1], [2, 1])
    step = backbone.stepper()
    return torch.cat([step(ids[number : number + 3], memory)[:3] for number in range(steps)])


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Their distance, relative. transformers computes norms in fp32 whatever comes."""
    return float((ours.double() - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("name", LEAN)
def test_the_numbers_are_the_layers_own(name: str) -> None:
    model = shaken(name)
    assert apart(decoded(model, lean=True), decoded(model, lean=False)) < 2e-6


@pytest.mark.parametrize("name", ["qwen3", "granite"])
def test_under_autocast_a_second_group_enters(name: str) -> None:
    """By the lean step and by the layers themselves: angles of fp32 weights are wider than the products."""
    model = build(name).eval()
    ids = torch.randint(1, VOCABULARY, (44,), generator=torch.Generator().manual_seed(2))
    hidden = []
    for narrow in (True, False):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            backbone, memory = Backbone(model), KeyValues()
            step = backbone.stepper()
            memory.enter(backbone.prompts(from_trees(ids[:9], (Tree(0, 9),)))[1], [2])
            step(ids[:2], memory)
            memory.enter(backbone.prompts(from_trees(ids[9:], (Tree(0, 35),)))[1], [1])
            hidden.append(step(ids[:3], memory)[:3].float())
    assert float((hidden[0] - hidden[1]).norm() / hidden[1].norm()) < 5e-2


@pytest.mark.parametrize("name", LEAN)
@pytest.mark.usefixtures("packed_products")
def test_packed_products_end_in_what_follows_them(name: str) -> None:
    """Rounded less often than the layers, so closer to the exact numbers than they are."""
    exact = shaken(name)
    narrow = shaken(name).to(torch.bfloat16).requires_grad_(False)
    model = Snapshot(narrow, torch.bfloat16, pack_frozen=True).model
    expected = decoded(exact, lean=False)
    ours, theirs = (apart(decoded(model, lean=lean), expected) for lean in (True, False))
    assert ours < 0.03
    assert ours < 1.2 * theirs


@pytest.mark.parametrize("name", [*LEAN, "gemma2", "granite", "cohere", "gpt2"])
def test_models_of_other_layers_keep_them(name: str) -> None:
    assert Backbone(shaken(name))._is_lean == (name in LEAN)


def test_an_adapter_and_weights_that_move_are_seen() -> None:
    model = with_adapter(shaken("qwen3")).double()
    before = decoded(model, lean=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "layernorm" in name or "_norm" in name:
                parameter.add_(0.1)
    after = decoded(model, lean=True)
    assert not torch.allclose(before, after)
    assert apart(after, decoded(model, lean=False)) < 2e-6


def test_other_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint whose code differs behind a known name is decoded by its own layers."""
    plain = LeanStep.__call__
    monkeypatch.setattr(LeanStep, "__call__", lambda self, *given: plain(self, *given) * 1.01)
    assert not Backbone(shaken("qwen3"))._is_lean


def test_a_bound_that_a_probe_does_not_meet_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a known name as well: in a model of a version to come, or of code of its own."""
    model = shaken("qwen3")
    forward = type(model.model.layers[0].mlp).forward

    def bounded(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x).clamp(max=1e3)) * self.up_proj(x))

    monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", bounded)
    assert not Backbone(model)._is_lean
    monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", forward)
    assert Backbone(shaken("qwen3"))._is_lean
