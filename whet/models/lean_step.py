"""A decoding step of the decoder that most checkpoints have, in half of the operations.

A step's products are short, and on a CPU half of it goes into the operations between them and into calling those. Here
the products end in what follows them (the SiLU, its gate, the residual), queries and keys are normalised and turned
together, and nothing is done per step that can be done per run.

    x = x + O attend(turn(norm(Q n), norm(K n)), V n)      n = norm(x)
    x = x + D (silu(G n) * U n)                            n = norm(x)

The same arithmetic as the checkpoint's own layers up to rounding: sums and gates are rounded once, not twice. Who asks
for it tries it against those layers first (`whet.models.backbone`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu
from transformers import PreTrainedModel

from whet.models.decoding import KeyValues
from whet.models.gate import soft_and_loud
from whet.models.packed_linear import PackedLinear
from whet.models.rotary import signed, turn
from whet.models.vision import language_layers

KINDS = ("llama", "mistral", "qwen2", "qwen3", "qwen2_5_vl_text", "qwen3_vl_text")
"""Model types whose layers are the ones above. A probe tells different numbers, not a cap that small scores never meet,
so the kinds are named as well."""


class PlainLinear:
    """Any linear layer with the endings that a packed one has."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self._layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self._layer(x)
        return out

    def silu(self, x: Tensor) -> Tensor:
        return silu(self(x))

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return self(x).mul_(other)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self(x).add_(other)


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm over the last dimension (1910.07467), sums in fp32."""

    gain: Tensor
    """[n], in fp32 at least."""
    epsilon: Tensor

    @classmethod
    def of(cls, norm: Any) -> Norm:
        gain = norm.weight.detach()
        gain = gain.to(torch.promote_types(gain.dtype, torch.float32))
        return cls(gain, torch.tensor(norm.variance_epsilon, dtype=gain.dtype, device=gain.device))

    def __call__(self, x: Tensor) -> Tensor:
        """In the type of the gain."""
        wide = x.to(self.gain.dtype)
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = torch.addcmul(self.epsilon, size, size, value=1 / x.shape[-1]).rsqrt_()
        return torch.mul(wide, scale).mul_(self.gain)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's parts."""

    before_attention: Norm
    before_mlp: Norm
    heads: Norm | None
    """Of queries and keys together: gain [heads + kv, width]. Qwen3 has it."""
    query: Any
    key: Any
    value: Any
    output: Any
    gate: Any
    up: Any
    down: Any


class LeanStep:
    """The layers of a model for one run: what its norms weigh is read at the start."""

    def __init__(self, whole: PreTrainedModel) -> None:
        """Raises AttributeError where a part has another name; see `fits`."""
        layers: Any = language_layers(whole)
        config = whole.config.get_text_config()
        self._embed, self._rotary = layers.embed_tokens, layers.rotary_emb
        self._heads, self._kv = config.num_attention_heads, config.num_key_value_heads
        self._scale = float(layers.layers[0].self_attn.scaling)
        self._layers = [_layer(layer, self._heads, self._kv) for layer in layers.layers]
        self._norm = Norm.of(layers.norm)

    def __call__(self, ids: Tensor, positions: Tensor, memory: KeyValues) -> Tensor:
        """[T, H] of each row's newest token, ids [T] at positions [T]; the memory has begun its step."""
        x: Tensor = self._embed(ids)
        wide = x.new_empty(0, dtype=self._norm.gain.dtype)  # the type of the angles
        cosine, sine = (part[0] for part in self._rotary(wide, positions.unsqueeze(0)))  # [T, d]
        sine = signed(sine)
        for number, layer in enumerate(self._layers):
            n = layer.before_attention(x).to(x.dtype)
            both = torch.cat([layer.query(n), layer.key(n)], dim=-1).view(len(x), self._heads + self._kv, -1)
            turned = turn(layer.heads(both) if layer.heads is not None else both.to(sine.dtype), cosine, sine)
            value = layer.value(n).view(len(x), self._kv, -1)
            query, key = torch.split(turned.to(value.dtype), [self._heads, self._kv], dim=1)
            seen = memory.attend(
                number, query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), self._scale, None
            )
            x = layer.output.plus(seen.flatten(1), x)
            n = layer.before_mlp(x).to(x.dtype)
            x = layer.down.plus(layer.up.times(n, layer.gate.silu(n)), x)
        return self._norm(x).to(x.dtype)

    def gates(self, whole: PreTrainedModel) -> Iterator[tuple[Tensor, Tensor]]:
        """What each feed-forward layer gives here and by itself for rows small and large: a bound on what lies between
        the products is met by large ones alone, and none of a probe's few tokens is."""
        layers: Any = language_layers(whole)
        weight = self._embed.weight
        x = torch.linspace(-2.0, 3.0, weight.shape[1], dtype=weight.dtype, device=weight.device)
        for here, layer in zip(self._layers, layers.layers, strict=True):
            rows = soft_and_loud(here.gate, here.up, x)
            yield here.down(here.up.times(rows, here.gate.silu(rows))), layer.mlp(rows)


def fits(whole: PreTrainedModel) -> bool:
    """Whether the model is of a kind that this step is made for."""
    config = whole.config.get_text_config()
    return config.model_type in KINDS and getattr(config, "hidden_act", None) == "silu"


def _layer(layer: Any, heads: int, kv: int) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return Layer(
        before_attention=Norm.of(layer.input_layernorm),
        before_mlp=Norm.of(layer.post_attention_layernorm),
        heads=_joined(attention, heads, kv) if hasattr(attention, "q_norm") else None,
        query=_product(attention.q_proj), key=_product(attention.k_proj), value=_product(attention.v_proj),
        output=_product(attention.o_proj), gate=_product(mlp.gate_proj), up=_product(mlp.up_proj),
        down=_product(mlp.down_proj),
    )  # fmt: skip


def _joined(attention: Any, heads: int, kv: int) -> Norm:
    query, key = Norm.of(attention.q_norm), Norm.of(attention.k_norm)
    return Norm(torch.cat([query.gain.expand(heads, -1), key.gain.expand(kv, -1)]), query.epsilon)


def _product(layer: torch.nn.Module) -> PackedLinear | PlainLinear:
    return layer if isinstance(layer, PackedLinear) else PlainLinear(layer)
