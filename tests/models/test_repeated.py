"""Products in a narrow type on a CPU have few shapes, and what is put behind their rows changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from whet.models.backbone import Backbone
from whet.models.head import Head, head_scores
from whet.models.head_sums import TILE_TOKENS, TILE_VOCABULARY, token_tiles, vocabulary_tiles
from whet.models.memory import num_weights
from whet.models.packed_linear import PackedLinear
from whet.models.repeated import LARGE, ROWS, SEGMENT_TOKENS, TARGETS, TOKENS, TOKENS_OF_LARGE, missing, row_step
from whet.models.rows import from_trees
from whet.schema.packed import Packed, Tree

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_lengths_are_rounded_up_where_kernels_are_compiled() -> None:
    numbers = (0, 1, TOKENS, TOKENS + 1)
    assert [missing(num, torch.bfloat16, CPU, TOKENS) for num in numbers] == [0, TOKENS - 1, 0, TOKENS - 1]
    assert missing(3, torch.float16, CPU, ROWS) == ROWS - 3
    assert missing(1, torch.float32, CPU, TOKENS) == missing(1, torch.bfloat16, CUDA, TOKENS) == 0
    assert (row_step(LARGE - 1), row_step(LARGE)) == (TOKENS, TOKENS_OF_LARGE)


@pytest.mark.parametrize(
    ("tiles", "size", "grain"), [(token_tiles, TILE_TOKENS, TARGETS), (vocabulary_tiles, TILE_VOCABULARY, 64)]
)
@pytest.mark.parametrize("num", [0, 1, 63, 64, 512, 513, 1088, 2048, 2049, 41_037, 151_936])
def test_tiles_are_round_and_about_equal(
    tiles: Callable[[int], Iterator[slice]], size: int, grain: int, num: int
) -> None:
    found = list(tiles(num))
    assert [index for tile in found for index in range(tile.start, tile.stop)] == list(range(num))
    sizes = [tile.stop - tile.start for tile in found]
    assert len(sizes) == -(-num // size) and max(sizes, default=0) <= size
    assert all(length % grain == 0 for length in sizes[:-1])
    assert max(sizes, default=0) - min(sizes, default=0) < 2 * grain


@pytest.fixture
def backbone(tiny_checkpoint: Path) -> Callable[[torch.dtype], Backbone]:
    return lambda dtype: Backbone(AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=dtype))


class Shapes(TorchDispatchMode):
    """Rows of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.batched = set[int](), set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        tensors = [x for x in args if isinstance(x, Tensor) and x.dtype == torch.bfloat16]
        if name in ("mm", "addmm", "linear"):
            self.plain |= {x.shape[0] for x in tensors[-2:]}
        if name in ("bmm", "baddbmm"):
            self.batched |= {size for x in tensors for size in x.shape[1:]}
        return func(*args, **(kwargs or {}))


def packed(num: int) -> Packed:
    prompt, left, right = 5 + num % 7, 20 + num, 33
    size = prompt + left + right
    return from_trees(torch.arange(size) % 50, (Tree(0, prompt, (left, right)),))


@pytest.mark.parametrize(("autocast", "large"), [(False, False), (True, False), (False, True)])
def test_rows_of_all_lengths_make_the_same_products(
    backbone: Callable[[torch.dtype], Backbone], autocast: bool, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the checkpoint's 33,000 weights the layers have 25,000; embeddings multiply nothing.
    monkeypatch.setattr("whet.models.repeated.LARGE", 20_000 if large else 30_000)
    shapes, model = list[Shapes](), backbone(torch.float32 if autocast else torch.bfloat16)
    for num in range(0, 30, 3):
        with Shapes() as found, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            row = packed(num)
            assert len(model.hidden(row, torch.arange(row.num_tokens))) == row.num_tokens
        shapes.append(found)
    of_weights = {size for parameter in model._whole.parameters() for size in parameter.shape}
    expected = {64, 96} if large else {64, 128}
    assert {size for found in shapes for size in found.plain} - of_weights == expected - of_weights
    width = model._whole.config.head_dim
    assert all(size % SEGMENT_TOKENS == 0 or size == width for found in shapes for size in found.batched)


def test_weights_are_counted_however_they_are_held(tiny_checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    numbers = num_weights(model.model)
    assert numbers == sum(x.numel() for x in model.parameters()) - model.model.embed_tokens.weight.numel()
    for layer in model.model.layers:
        layer.mlp.up_proj = PackedLinear(layer.mlp.up_proj.weight, None)
    assert num_weights(model.model) == numbers


def test_filling_changes_nothing(backbone: Callable[[torch.dtype], Backbone], monkeypatch: pytest.MonkeyPatch) -> None:
    model, row = backbone(torch.bfloat16), packed(11)
    every = torch.arange(row.num_tokens)
    filled = model.hidden(row, every)
    monkeypatch.setattr("whet.models.backbone.missing", lambda *_: 0)
    plain = model.hidden(row, every)
    assert filled.shape == plain.shape
    torch.testing.assert_close(filled.float(), plain.float(), rtol=0.05, atol=0.05)
    assert torch.autograd.grad(filled.float().sum(), model.embeddings.weight)[0][51:].eq(0).all()


def test_targets_have_filling_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(70, 16, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(90, 16, generator=generator).bfloat16()
    targets = torch.randint(0, 90, (70,), generator=generator)
    scores = head_scores(hidden, Head(weight=weight), targets, statistics=True)
    expected = torch.log_softmax(hidden.float() @ weight.float().t(), dim=-1)
    torch.testing.assert_close(scores.logprobs, expected.gather(1, targets[:, None])[:, 0], rtol=0.02, atol=0.02)
    assert scores.entropy is not None and len(scores.entropy) == len(scores.top1) == 70
    ours, theirs = (
        torch.autograd.grad(x.sum(), hidden)[0].float() for x in (scores.logprobs, expected.gather(1, targets[:, None]))
    )
    assert float((ours - theirs).norm() / theirs.norm()) < 0.02
