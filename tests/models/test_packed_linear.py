"""Packed weights give the numbers of plain ones, in bf16 to the bit, row by row, and follow what is trained."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu

from tests.models.packed import VOCABULARY, build, with_adapter
from whet.models import packed_linear
from whet.models.backbone import Backbone
from whet.models.packed_linear import PackedLinear, packs
from whet.models.repeated import least_rows
from whet.models.rows import from_trees
from whet.models.scoring import logits_function, next_logits
from whet.models.snapshot import Snapshot
from whet.schema.packed import Tree

WEIGHT = torch.zeros(1, dtype=torch.bfloat16)
needs_onednn = pytest.mark.skipif(not packs(WEIGHT, torch.bfloat16), reason="no bf16 products by oneDNN here")
packing = pytest.mark.usefixtures("packed_products")


def packed_layers(model: torch.nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, PackedLinear)]


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(1, 31) % VOCABULARY
    hidden = Backbone(model).hidden(from_trees(ids, (Tree(0, 12), Tree(12, 18))), torch.arange(30))
    return logits_function(model)(hidden)


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
def test_any_number_of_rows_gives_the_plain_product(bias: bool) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(96, 200, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    packed = PackedLinear(plain.weight, plain.bias)
    for rows in (1, 2, 7, 8, 9, 31, 32, 33, 64, 300):
        x = torch.randn(rows, 96).bfloat16()
        assert torch.equal(packed(x), plain(x)), rows
        assert torch.equal(packed(x[None]), plain(x)[None]), rows


@pytest.mark.parametrize("bias", [False, True])
def test_in_fp32_it_is_the_product_up_to_rounding_with_what_follows_it(bias: bool) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(512, 768, bias=bias).requires_grad_(False)
    assert packs(plain.weight, torch.float32)
    packed = PackedLinear(plain.weight, plain.bias)
    for rows in (1, 7, 32, 33, 300):
        x, other = torch.randn(rows, 512), torch.randn(rows, 768)
        y = plain(x)
        for found, expected in (
            (packed(x), y), (packed.silu(x), silu(y)), (packed.times(x, other), y * other),
            (packed.plus(x, other), y + other),
        ):  # fmt: skip
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_onednn)])
def test_a_row_does_not_know_its_neighbours(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(512, 3000, bias=False, dtype=dtype)
    packed = PackedLinear(plain.weight, None)
    x = torch.randn(64, 512).to(dtype)
    whole = packed(x)
    for rows in range(least_rows(plain), 64, 5):
        assert torch.equal(packed(x[:rows]), whole[:rows])
        assert torch.equal(packed(x[-rows:]), whole[-rows:])


@needs_onednn
def test_products_too_small_for_onednn_take_more_rows() -> None:
    """torch leaves 16 x 16 x 16 multiplications and fewer to a routine that rounds otherwise."""
    made = [torch.nn.Linear(inputs, outputs, dtype=torch.bfloat16) for inputs, outputs in ((32, 16), (64, 48))]
    small, large = (least_rows(layer) for layer in made)
    assert small >= 9 and large == least_rows(torch.nn.Linear(512, 512, dtype=torch.bfloat16))
    torch.manual_seed(0)
    for _ in range(200):
        x = torch.randn(40, 32).bfloat16()
        assert torch.equal(made[0](x[:small]), made[0](x)[:small])


@packing
def test_a_snapshot_packs_its_own_copies_and_the_head_and_they_follow() -> None:
    model = with_adapter(build("qwen3")).to(torch.bfloat16)
    snapshot = Snapshot(model, torch.bfloat16)
    folded = [path.removeprefix("base_model.model.") for path, m in model.named_modules() if hasattr(m, "lora_A")]
    assert sorted(packed_layers(snapshot.model)) == sorted([*folded, "lm_head"])
    everything = Snapshot(model, torch.bfloat16, pack_frozen=True).model
    assert not [path for path, module in everything.named_modules() if type(module) is torch.nn.Linear]
    before = logits(snapshot.model)
    assert torch.equal(logits(everything), before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3)
    assert torch.equal(logits(snapshot.model), before), "a copy is as old as its last refresh"
    snapshot.refresh()
    after = logits(snapshot.model)
    assert not torch.equal(after, before)
    assert torch.equal(after, logits(Snapshot(model, torch.bfloat16).model))


@packing
def test_trained_weights_of_fp32_are_packed_in_bf16_and_an_embedding_stays_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build("qwen3").float().requires_grad_(True)
    snapshot = Snapshot(model, torch.bfloat16)
    assert "lm_head" in packed_layers(snapshot.model)
    assert type(snapshot.model.get_input_embeddings()) is torch.nn.Embedding
    with monkeypatch.context() as without:
        without.setattr(packed_linear, "OPERATORS", ("_no_such_operator",))
        plain = Snapshot(model, torch.bfloat16)
    for factor in (1.0, 2.0):
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(factor)
        snapshot.refresh()
        plain.refresh()
        assert torch.equal(logits(snapshot.model), logits(plain.model))


@packing
@pytest.mark.parametrize("name", ["qwen2", "llama", "gemma2", "cohere"])
def test_a_frozen_model_is_packed_where_that_is_asked_for_and_scores_as_before(name: str) -> None:
    model = build(name).to(torch.bfloat16).requires_grad_(False).eval()
    before = logits(model).float()
    assert Snapshot(model, torch.bfloat16).model is model
    packed = Snapshot(model, torch.bfloat16, pack_frozen=True).model
    assert packed_layers(packed) and not packed_layers(model)
    # A head with a factor or a cap is taken in fp32 where it is plain, and a packed one rounds before it is bent.
    rounding = 1e-2 if name in ("gemma2", "cohere") else 0.0
    torch.testing.assert_close(logits(packed).float(), before, rtol=rounding, atol=rounding)


def test_a_model_in_fp32_is_packed_where_its_matrices_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_adapter(build("qwen3"))
    plain = Snapshot(model, torch.float32, pack_frozen=True).model
    assert not packed_layers(plain)
    monkeypatch.setattr(packed_linear, "LEAST_WEIGHTS", 1)
    snapshot = Snapshot(model, torch.float32)
    folded = [path.removeprefix("base_model.model.") for path, m in model.named_modules() if hasattr(m, "lora_A")]
    assert sorted(packed_layers(snapshot.model)) == sorted([*folded, "lm_head"])
    torch.testing.assert_close(logits(snapshot.model), logits(plain), rtol=1e-4, atol=1e-5)


def test_nothing_is_packed_where_the_operators_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_adapter(build("qwen3")).to(torch.bfloat16)
    assert not packs(WEIGHT.float(), torch.float32), "a call costs more than so small a product"
    assert not packs(torch.zeros(512, 512, dtype=torch.float16), torch.float16)
    assert not packs(WEIGHT.to("meta"), torch.bfloat16)
    assert not packs(torch.zeros(512, 512, device="meta"), torch.float32)
    monkeypatch.setattr(packed_linear, "OPERATORS", ("_no_such_operator",))
    snapshot = Snapshot(model, torch.bfloat16)
    assert not packed_layers(snapshot.model)
    hidden = torch.randn(8, snapshot.model.config.hidden_size).bfloat16()
    assert torch.equal(logits_function(snapshot.model)(hidden), next_logits(snapshot.model, hidden))
