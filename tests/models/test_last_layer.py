"""The last layer goes on with the tokens that are read: the same numbers and gradients, of fewer rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification

from tests.models.packed import SMALL, build, pack, with_adapter
from whet.models import backbone
from whet.models.activations import Activations
from whet.models.attention import NAME
from whet.models.backbone import Backbone, unwrapped
from whet.models.last_layer import KINDS, ReadLayer, reads_last_layer
from whet.models.scoring import RowScorer, TokenScorer
from whet.models.value import PolicyScorer, ValueScorer, fresh_value_head
from whet.models.vision import language_layers

SHAPES = [(21, (2, 4)), (3, ()), (30, (5,))]
"""Long prompts; a row without branches is read at its last token but one."""


def rows_of_last(model: torch.nn.Module) -> list[int]:
    """Filled with the number of rows that the last layer's feed-forward part is given, pass by pass."""
    found = list[int]()
    layers = language_layers(unwrapped(model)).layers
    layers[-1].mlp.register_forward_pre_hook(lambda _, given: found.append(given[0].shape[1]))  # type: ignore[index]
    return found


@contextmanager
def reading_all() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "SHARE", 0.0)
        yield


def gradients(model: torch.nn.Module, loss: Tensor) -> list[Tensor]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama", "mistral"])
def test_the_numbers_of_all_rows(name: str, adapted: bool) -> None:
    model = build(name).double()
    whole = with_adapter(model).double() if adapted else model
    scorer, packed = TokenScorer(whole), pack(SHAPES)
    rows = rows_of_last(whole)
    some = scorer(packed).logprobs
    ours = gradients(whole, (some * torch.arange(len(some))).sum())
    with reading_all():
        every = scorer(packed).logprobs
    theirs = gradients(whole, (every * torch.arange(len(every))).sum())
    assert rows == [len(packed.targets), packed.num_tokens] and rows[0] < rows[1] / 2
    torch.testing.assert_close(some, every, rtol=0, atol=1e-12)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_few_rows_of_many_are_read() -> None:
    """In any order, and some twice."""
    model, packed = build("qwen3").eval(), pack(SHAPES)
    found, rows, read = Backbone(model), rows_of_last(model), torch.tensor([40, 2, 2, 17])
    with torch.no_grad():
        some, every = found.hidden(packed, read), found.hidden(packed, torch.arange(packed.num_tokens))
    assert rows == [4, packed.num_tokens]
    torch.testing.assert_close(some, every[read], rtol=0, atol=1e-5)


def test_half_of_a_row_is_picked_out_and_more_is_not() -> None:
    model, packed = build("qwen3").eval(), pack(SHAPES)
    rows, half = rows_of_last(model), packed.num_tokens // 2
    for found in (Backbone(model), Backbone(model)):  # the second one finds the model known
        rows.clear()
        with torch.no_grad():
            for num in (half, half + 1):
                assert len(found.hidden(packed, torch.arange(num))) == num
        assert rows == [half, packed.num_tokens]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_may_be_read(dtype: torch.dtype) -> None:
    model = build("qwen3").to(dtype)
    hidden = Backbone(model).hidden(pack(SHAPES), torch.arange(0))
    assert hidden.shape == (0, 32)
    assert all(not gradient.any() for gradient in gradients(model, hidden.sum()))


def test_reward_models_and_values_read_what_they_score() -> None:
    packed = pack([(40, (5, 6)), (30, (4,))])
    model = LlamaForSequenceClassification(LlamaConfig(**SMALL, num_labels=1))
    model.set_attn_implementation(NAME)
    reward, own, policy = RowScorer(model), ValueScorer(model), TokenScorer(build("qwen3"))
    rows = rows_of_last(model)
    assert reward(packed).shape == (3,)
    values = own(packed)
    assert (len(values.tokens), len(values.ends)) == (15, 3) and rows == [3, 15 + 3]
    rows = rows_of_last(policy.model)
    for value in (own, fresh_value_head(policy.model)):
        PolicyScorer(policy, value)(packed)
    assert rows == [15, 15 + 3]


def test_in_bf16_their_number_is_round() -> None:
    model, packed = build("qwen3").bfloat16().eval(), pack([(200, (3, 4))])
    found, rows, read = Backbone(model), rows_of_last(model), torch.tensor([202, 206])
    with torch.no_grad():
        some, every = found.hidden(packed, read), found.hidden(packed, torch.arange(packed.num_tokens))
    assert rows == [64, 256] and len(some) == 2
    torch.testing.assert_close(some.float(), every[read].float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("selective", [False, True])
def test_recomputed_it_is_the_same(selective: bool) -> None:
    kept, again = (
        TokenScorer(build("qwen3").train(), activations=how)
        for how in (Activations(), Activations(every=1, selective=selective))
    )
    packed = pack(SHAPES)
    rows = rows_of_last(again.model)
    one, other = (gradients(scorer.model, scorer(packed).logprobs.sum()) for scorer in (kept, again))
    assert rows[0] == len(packed.targets)
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_kinds_that_are_not_known_stay_what_they_are() -> None:
    for name in ("gemma2", "granite", "gpt2"):
        model, packed = build(name).eval(), pack(SHAPES)
        assert model.config.model_type not in KINDS
        found, read = Backbone(model), torch.tensor([40, 2])
        assert not reads_last_layer(model)
        with torch.no_grad():
            every = found.hidden(packed, torch.arange(packed.num_tokens))
            torch.testing.assert_close(found.hidden(packed, read), every[read], rtol=0, atol=1e-5)


def test_a_layer_that_does_more_than_its_kind_is_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama").eval()
    last = model.model.layers[-1]
    kind, plain = type(last), type(last).forward
    monkeypatch.setattr(kind, "forward", lambda self, x, **given: plain(self, x, **given) + x)
    found, packed, read = Backbone(model), pack(SHAPES), torch.tensor([40, 2])
    assert type(last) is kind and not reads_last_layer(model)
    with torch.no_grad():
        every = found.hidden(packed, torch.arange(packed.num_tokens))
        torch.testing.assert_close(found.hidden(packed, read), every[read], rtol=0, atol=1e-5)


def test_layers_of_somebody_elses_stay_what_they_are() -> None:
    """They may do more while they train, or give more, and go by a known kind all the same."""
    model = build("llama").eval()
    last = model.model.layers[-1]

    class Theirs(type(last)):  # type: ignore[misc]
        pass

    last.__class__ = Theirs
    Backbone(model)
    assert type(last) is Theirs


def test_a_trial_that_fails_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama").eval()
    last = model.model.layers[-1]
    kind, plain, norm = type(last), type(last).forward, last.post_attention_layernorm
    del last.post_attention_layernorm
    last.other_norm = norm

    def forward(self: Any, x: Tensor, **given: Any) -> Tensor:
        self.post_attention_layernorm = self.other_norm
        try:
            return plain(self, x, **given)
        finally:
            del self.post_attention_layernorm

    monkeypatch.setattr(kind, "forward", forward)
    for layer in model.model.layers[:-1]:
        layer.other_norm = layer.post_attention_layernorm
    for found in (Backbone(model), Backbone(model)):
        assert type(last) is kind and found.hidden(pack(SHAPES), torch.tensor([40])).shape == (1, 32)


def test_its_class_goes_by_the_same_name() -> None:
    """transformers names what must not be split over devices."""
    model = build("qwen3")
    Backbone(model)
    last = model.model.layers[-1]
    assert isinstance(last, ReadLayer) and type(last).__name__ in (model._no_split_modules or ())
