"""The shape of a model: the few numbers that decide what training and generation cost. No weight is read for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """Linear layers of one size."""

    inputs: int
    outputs: int
    count: int

    @property
    def parameters(self) -> int:
        return self.count * self.inputs * self.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A causal decoder, with a vision tower where it has one."""

    name: str
    """Class of the model, e.g. Qwen3ForCausalLM."""
    parameters: int
    """All of them, tied ones once."""
    largest: int
    """Numbers of the largest single parameter: as a rule the embedding."""
    block: int
    """Parameters of one layer; of the largest where they differ."""
    vision: int
    """Parameters of tower and projector, which stay frozen unless the plan trains them."""
    layers: int
    width: int
    """H, of the residual stream."""
    inner: int
    """I, of the feed-forward layer; of all experts that a token goes through."""
    heads: int
    head_width: int
    key_heads: int
    """Heads of keys and values."""
    vocabulary: int
    """V, rows of the LM head."""
    tied: bool
    """LM head and embedding are one matrix."""
    normed_heads: bool
    """Queries and keys are normalised (Qwen3)."""
    experts: int = 0
    """Weights of all experts of a mixture."""
    experts_share: float = 1.0
    """Part of them that a token goes through."""
    products: tuple[Product, ...]
    """Linear layers of the language model, the LM head left out."""
    adapted: tuple[Product, ...]
    """Layers that the plan's adapter stands on; none without one."""

    @property
    def attention_width(self) -> int:
        """A, of all queries of a token."""
        return self.heads * self.head_width

    @property
    def key_width(self) -> int:
        """K, of all keys of a token."""
        return self.key_heads * self.head_width

    @property
    def head(self) -> int:
        """Numbers of the LM head."""
        return self.vocabulary * self.width

    @property
    def multiplied(self) -> float:
        """Weights that a token is multiplied with, the LM head left out."""
        return sum_of(self.products) + self.experts_share * self.experts

    def adapter(self, rank: int) -> int:
        """Parameters of an adapter of this rank (2106.09685): rank (inputs + outputs) for every adapted layer."""
        return sum(product.count * rank * (product.inputs + product.outputs) for product in self.adapted)


def sum_of(products: Iterable[Product]) -> int:
    """Numbers of all their weights."""
    return sum(product.parameters for product in products)
