"""Gradient checkpointing gives the same gradients, dropout included."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

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
    for limit, calls in ((0, 2), (batch.packed.num_tokens - 1, 2), (batch.packed.num_tokens, 1)):
        found, counted = gradients(model, batch, limit)
        assert (counted, once) == (calls, 1), "it recomputes where it should, and only there"
        for one, other in zip(found, kept, strict=True):
            assert other.norm() > 0
            assert float((one - other).norm() / other.norm()) < 1e-6
