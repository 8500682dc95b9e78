"""Attention in blocks of queries against one dense softmax under the trees' mask, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from whet.models import tree_attention as module
from whet.models.attention import segment_ids
from whet.models.tree_attention import segments_of, tree_attention
from whet.schema.packed import Tree

SCALE = 0.3
Shape = tuple[int, tuple[int, ...]]
shapes = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), max_size=3).map(tuple)), min_size=1, max_size=3
)


def trees_of(shapes: list[Shape]) -> tuple[Tree, ...]:
    trees: list[Tree] = []
    for prompt, branches in shapes:
        start = trees[-1].start + trees[-1].num_tokens if trees else 0
        trees.append(Tree(start, prompt, branches))
    return tuple(trees)


def inputs(trees: tuple[Tree, ...], heads: int, keys: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    num = sum(tree.num_tokens for tree in trees)
    return [torch.randn(count, num, 4, generator=generator).to(dtype).requires_grad_() for count in (heads, keys, keys)]


def dense(query: Tensor, key: Tensor, value: Tensor, trees: tuple[Tree, ...]) -> Tensor:
    """[T, h, d] in float64."""
    q, k, v = query.double(), *(x.double().repeat_interleave(len(query) // len(key), dim=0) for x in (key, value))
    tree_of, branch_of = segment_ids(trees)
    position = torch.arange(len(tree_of))
    own = (branch_of[None] == 0) | (branch_of[None] == branch_of[:, None])
    seen = (tree_of[None] == tree_of[:, None]) & own & (position[None] <= position[:, None])
    scores = (SCALE * q @ k.transpose(1, 2)).masked_fill(~seen, -torch.inf)
    return (scores.softmax(dim=-1) @ v).transpose(0, 1)


@settings(max_examples=60, deadline=None)
@given(shapes=shapes, block=st.integers(1, 12), groups=st.integers(1, 3))
def test_outputs_and_gradients(shapes: list[Shape], block: int, groups: int) -> None:
    """Blocks of any size, segments shorter and longer than they, a key for one head or for several."""
    trees = trees_of(shapes)
    tensors = inputs(trees, 2 * groups, 2)
    direction = torch.randn(tensors[0].shape[1], 2 * groups, 4, generator=torch.Generator().manual_seed(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        found = tree_attention(*tensors, SCALE, segments_of(trees))
        ours = torch.autograd.grad(found, tensors, direction)
    expected = dense(*tensors, trees)
    theirs = torch.autograd.grad(expected, tensors, direction.double())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-5)


def test_in_bf16_at_the_size_of_real_blocks() -> None:
    trees = (Tree(0, 70, (300, 131)), Tree(501, 150))
    tensors = inputs(trees, 4, 2, torch.bfloat16)
    found, expected = tree_attention(*tensors, SCALE, segments_of(trees)), dense(*tensors, trees)
    assert float((found - expected).norm() / expected.norm()) < 5e-3
    direction = torch.ones_like(found).cumsum(0).remainder(3) - 1
    ours, theirs = torch.autograd.grad(found, tensors, direction), torch.autograd.grad(expected, tensors, direction)
    for mine, other in zip(ours, theirs, strict=True):
        assert float((mine - other).float().norm() / other.float().norm()) < 1e-2


def test_one_query_in_a_segment() -> None:
    """A first token sees itself alone: its output is its own value."""
    tensors = inputs((Tree(0, 1),), 2, 1)
    found = tree_attention(*tensors, SCALE, segments_of((Tree(0, 1),)))
    torch.testing.assert_close(found[0], tensors[2][:, 0].expand(2, -1))
