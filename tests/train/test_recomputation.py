"""Whatever is kept for the backward pass, and wherever: the same gradients, dropout included."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from whet.config.train import Train
from whet.models import offload
from whet.models.activations import WIDE, Activations
from whet.models.scoring import TokenScorer
from whet.objectives.supervised import nll
from whet.train.learners import TokenLearner


def gradients(model: torch.nn.Module, batch: Any, keep_tokens: int | None) -> tuple[list[torch.Tensor], int]:
    """Gradients of one batch, and how many forward passes a layer made for them."""
    model, calls = copy.deepcopy(model), 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    layer = next(m for name, m in model.named_modules() if name.endswith("layers.0.mlp"))
    scorer = TokenScorer(model, keep_tokens=keep_tokens).train()
    layer.register_forward_pre_hook(count)
    torch.manual_seed(8)
    TokenLearner(nll).loss(scorer, batch).total.backward()
    return [p.grad for p in model.parameters() if p.requires_grad], calls


@pytest.mark.parametrize(("lora", "dropout"), [(False, 0.0), (True, 0.0), (True, 0.3)])
@pytest.mark.parametrize("attention", ["packed", "eager"])
def test_same_gradients(lora: bool, dropout: float, attention: str, make_model, make_rows, collate) -> None:
    model, rows = make_model(lora=lora, dropout=dropout), make_rows(10)
    if attention == "eager":
        model.set_attn_implementation("eager")
    batch = collate(rows)(range(10))
    kept, once = gradients(model, batch, None)
    assert once == (1 if attention == "packed" else 2), "padded rows go through the layers in two parts"
    num = batch.packed.num_tokens
    for limit, passes in ((0, 2), (num - 1, 2), (num, 1 if attention == "packed" else 2)):  # padding is kept too
        found, counted = gradients(model, batch, limit)
        assert counted == passes * once, "it recomputes where it should, and only there"
        for one, other in zip(found, kept, strict=True):
            assert other.norm() > 0
            assert float((one - other).norm() / other.norm()) < 1e-6


@pytest.fixture(params=[0.0, 0.2])
def wide_model(request: pytest.FixtureRequest) -> torch.nn.Module:
    """Four layers whose products are over 128 numbers, under an adapter, fused or, with dropout, by peft."""
    dropout = request.param
    torch.manual_seed(0)
    model: torch.nn.Module = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=300, hidden_size=128, intermediate_size=160, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, max_position_embeddings=64,
        )
    )  # fmt: skip
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.train()


class Products(TorchDispatchMode):
    """Counts the matrix products over at least `WIDE` numbers that are really computed."""

    num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.default and args[0].shape[-1] >= WIDE:
            self.num += 1
        return func(*args, **(kwargs or {}))


def of_kind(model: torch.nn.Module, batch: Any, kind: Activations) -> tuple[list[torch.Tensor], list[int], int]:
    """Gradients, how often each layer ran, and the wide products of the backward pass."""
    model = copy.deepcopy(model)
    layers = [m for name, m in model.named_modules() if name.endswith(".mlp")]
    calls = [0] * len(layers)
    for number, layer in enumerate(layers):
        def count(*_: Any, number: int = number) -> None:
            calls[number] += 1

        layer.register_forward_pre_hook(count)
    scorer = TokenScorer(model, activations=kind).train()
    calls[:] = [0] * len(layers)
    torch.manual_seed(8)
    total = TokenLearner(nll).loss(scorer, batch).total
    with Products() as products:
        total.backward()
    return [p.grad for p in model.parameters() if p.grad is not None], calls, products.num


def test_every_kind_gives_the_same_gradients_and_recomputes_what_it_says(wide_model, make_rows, collate) -> None:
    batch = collate(make_rows(10))(range(10))
    kept, once, products = of_kind(wide_model, batch, Activations())
    assert once == [1, 1, 1, 1] and all(one.norm() > 0 for one in kept)
    for asked, calls in ((True, [2, 2, 2, 2]), (2, [2, 1, 2, 1]), (3, [2, 1, 1, 2]), ("selective", [2, 2, 2, 2])):
        found, counted, again = of_kind(wide_model, batch, Activations.of(Train(gradient_checkpointing=asked)))
        assert sorted(counted) == sorted(calls), asked
        # What is selected is not computed again, though its layer is. One product more is the gradient of the first
        # layer's input, which recomputing asks for.
        assert (again == products + 1) if asked == "selective" else (again > products + 6), (asked, again, products)
        for one, other in zip(found, kept, strict=True):
            assert float((one - other).norm() / other.norm()) < 1e-6, asked


@pytest.mark.parametrize("asked", [False, True, "selective"])
def test_what_was_on_the_host_comes_back(asked: Any, wide_model, make_rows, collate, monkeypatch) -> None:
    """On a CPU the way there is a copy as well."""
    batch = collate(make_rows(12))(range(12))
    kept = of_kind(wide_model, batch, Activations())[0]
    monkeypatch.setattr(offload, "LEAST_BYTES", 1024)
    model, gone, stored = copy.deepcopy(wide_model), [], 0
    away = offload._Away.__init__

    def noted(self: Any, tensor: torch.Tensor) -> None:
        gone.append((tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor._version))
        away(self, tensor)

    monkeypatch.setattr(offload._Away, "__init__", noted)
    scorer = TokenScorer(model, activations=Activations.of(Train(gradient_checkpointing=asked))).train()
    torch.manual_seed(8)
    with offload.offloading(model, torch.device("cpu")):
        total = TokenLearner(nll).loss(scorer, batch).total
    stored = len(gone)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert stored >= 4 and not any(pointer in weights for pointer, *_ in gone)
    total.backward()
    assert len(gone) == stored, "what is computed again in the backward pass stays where it is"
    for one, other in zip([p.grad for p in model.parameters() if p.grad is not None], kept, strict=True):
        assert torch.equal(one, other) or float((one - other).norm() / other.norm()) < 1e-6


def test_a_tensor_that_many_keep_goes_once_and_a_changed_one_again() -> None:
    base = torch.randn(64, 64)
    weight = torch.nn.Linear(64, 64)
    host = offload._Host(weight, torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offload, "LEAST_BYTES", 1024)
        first, again = host.take(base), host.take(base.view(64, 64))
        assert first is again and isinstance(first, offload._Away)
        assert host.take(weight.weight) is weight.weight
        base.add_(1.0)
        changed = host.take(base)
        assert changed is not first
        torch.testing.assert_close(host.give(changed) - host.give(first), torch.ones(64, 64), rtol=0, atol=1e-5)
        turned = host.give(host.take(base.t()))
        assert torch.equal(turned, base.t()) and turned.stride() == base.t().stride()
        wide = base[:1].expand(64, 64)
        assert host.take(wide) is wide, "a copy would take more than it does"


def test_a_cpu_is_told_that_nothing_moves(make_model) -> None:
    with pytest.warns(UserWarning, match="activation_offload moves nothing on a CPU"):
        TokenScorer(make_model(), activations=Activations.of(Train(activation_offload=True)))
