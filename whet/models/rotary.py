"""Queries and keys of packed rows, normalised and turned in one autograd step (RoFormer, 2104.09864).

transformers turns in a dozen operations over all of them, and as many again for the gradient; under Qwen3's norms of
each head the passes double, and what lies between the two is kept. Here both are one pass in fp32 over some tokens at a
time, and beside the angles all that is kept is the input and one number a head, and nothing where heads have no norm.

    y = n * cos + swap(n) * sin        n = x / rms(x) * gain, or x where heads have no norm

where swap exchanges the halves of each head and the first half of the sine is negative.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from whet.models.attention import Layout, attend
from whet.models.mode import agree, evaluating
from whet.models.norm import TILE, FusedNorm, normalise_, unnormalise_
from whet.models.tiles import row_tiles
from whet.models.vision import language_layers
from whet.schema.packed import Tree

KINDS = ("llama", "mistral", "qwen2", "qwen3", "qwen3_vl_text")
"""Model types whose attention is the one below; it is tried out as well. Others turn by rules of their own, or do more
to queries, keys or scores than a trial of small numbers would show."""


def fuse_rotary(whole: PreTrainedModel) -> None:
    """Let the model's attention layers normalise and turn in one step, where they are of a kind that is known."""
    if whole.config.get_text_config().model_type not in KINDS:
        return
    layers: Any = language_layers(whole)
    for layer in layers.layers:
        attention = layer.self_attn
        if not isinstance(attention, TurningAttention) and _agrees(attention, layers):
            attention.__class__ = _fused(type(attention))  # type: ignore[arg-type]


class TurningAttention(torch.nn.Module):
    """A mixin before a model's own attention layer: another forward pass for packed rows."""

    def forward(self, *args: Any, **given: Any) -> tuple[Tensor, Tensor | None]:
        if args or given.get("trees") is None or given["hidden_states"].dtype == torch.float64:
            theirs: tuple[Tensor, Tensor | None] = super().forward(*args, **given)
            return theirs
        return _attend(self, **given)


@cache
def _fused(kind: type[torch.nn.Module]) -> type[torch.nn.Module]:
    return type(f"Turning{kind.__name__}", (TurningAttention, kind), {})


def _attend(
    layer: Any, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], trees: Layout, **_: Any
) -> tuple[Tensor, None]:
    """hidden_states [1, T, H], cosine and sine [1, T, d]. Returns [1, T, H]."""
    cosine, sine = (part[0] for part in position_embeddings)
    query, key, value = (
        product(hidden_states)[0].unflatten(-1, (-1, layer.head_dim))
        for product in (layer.q_proj, layer.k_proj, layer.v_proj)
    )  # [T, n, d]
    query = _turned(query, getattr(layer, "q_norm", None), cosine, sine, value.dtype)
    key = _turned(key, getattr(layer, "k_norm", None), cosine, sine, value.dtype)
    query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in (query, key, value))
    mixed, _weights = attend(
        layer, query, key, value, None, dropout=layer.attention_dropout if layer.training else 0.0,
        scaling=layer.scaling, trees=trees,
    )  # fmt: skip
    return layer.o_proj(mixed.flatten(-2)), None


def _turned(
    x: Tensor, norm: torch.nn.Module | None, cosine: Tensor, sine: Tensor, dtype: torch.dtype
) -> Tensor:
    """[T, n, d] in the type of the products, also where a norm that trains gives a wider one."""
    gain, epsilon = None, 0.0
    if isinstance(norm, FusedNorm) and norm.fuses(x):
        gain, epsilon = norm.gain(), norm.epsilon
    elif norm is not None:
        x = norm(x)
    out: Tensor = _Turned.apply(x, gain, epsilon, cosine, sine, dtype)  # type: ignore[no-untyped-call]
    return out


class _Turned(torch.autograd.Function):
    """x [T, n, d], gain [d] in fp32 or None, cosine and sine [T, d]; the result is of `dtype`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor | None, epsilon: float, cosine: Tensor, sine: Tensor, dtype: torch.dtype
    ) -> Tensor:
        out = x.new_empty(x.shape, dtype=dtype)
        scale = None if gain is None else gain.new_empty(*x.shape[:-1], 1)
        for tile in row_tiles(out.flatten(1), TILE):
            wide = x[tile].to(torch.float32, copy=True)
            if gain is not None and scale is not None:
                scale[tile] = normalise_(wide, gain, epsilon)
            out[tile] = turn(wide, cosine[tile].float(), signed(sine[tile].float()))
        ctx.save_for_backward(None if gain is None else x, gain, scale, cosine, sine)
        ctx.dtype = x.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, scale, cosine, sine = ctx.saved_tensors
        out = grad.new_empty(grad.shape, dtype=ctx.dtype)  # in order, which a gradient of keys need not be
        for tile in row_tiles(out.flatten(1), TILE):
            wide = grad[tile].float()
            # Exchanging the halves is its own transpose.
            g = torch.addcmul(
                swapped(wide * signed(sine[tile].float()).unsqueeze(1)), wide, cosine[tile].float().unsqueeze(1)
            )
            out[tile] = g if gain is None else unnormalise_(g, x[tile].float(), gain, scale[tile])
        return out, None, None, None, None, None


def turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """x [T, n, d] by cosine and sine [T, d], the first half of the sine negative."""
    return torch.addcmul(x * cosine.unsqueeze(1), swapped(x), sine.unsqueeze(1))


def swapped(x: Tensor) -> Tensor:
    """The halves of the last dimension exchanged."""
    return x.roll(x.shape[-1] // 2, -1)


def signed(sine: Tensor) -> Tensor:
    """[..., d] with the first half negative."""
    half = sine.shape[-1] // 2
    return torch.cat([-sine[..., :half], sine[..., half:]], dim=-1)


def _agrees(attention: Any, layers: Any) -> bool:
    """Whether the layer gives the same in one step, for a prompt of three tokens."""
    with torch.no_grad(), evaluating(attention):
        try:
            weight = layers.embed_tokens.weight
            x = torch.linspace(-2.0, 3.0, 3 * weight.shape[1], dtype=weight.dtype, device=weight.device)
            x = x.view(1, 3, -1)
            angles = layers.rotary_emb(x, torch.tensor([[0, 1, 2]], device=weight.device))
            given = {"hidden_states": x, "position_embeddings": angles, "trees": Layout((Tree(0, 3),))}
            theirs, ours = attention(**given, attention_mask=None)[0].float(), _attend(attention, **given)[0].float()
        except (TypeError, ValueError, RuntimeError, AttributeError):
            return False
    return agree(layers, ours, theirs, narrowly=0.02)
