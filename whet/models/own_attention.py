"""A model's own attention, for those that cannot take packed trees: which it is, and which models need it.

What is found out about a model is remembered, so that whoever uses it next neither tries it again nor says it again.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from whet.models.attention import NAME

_FOUND: WeakKeyDictionary[PreTrainedModel, str | None] = WeakKeyDictionary()
"""Why a model's rows are padded; None where they are packed."""


def attention_of(layers: torch.nn.Module) -> str:
    """What the layers are set to."""
    name: str = layers.config._attn_implementation  # type: ignore[union-attr, assignment]
    return name


def own_attention(layers: torch.nn.Module) -> str:
    """What transformers gives their class where nobody asks for anything: SDPA, or `eager` where that would leave
    something out."""
    name: str = layers.get_correct_attn_implementation(None)  # type: ignore[operator]
    return name


def set_attention(layers: torch.nn.Module, name: str) -> None:
    layers.set_attn_implementation(name)  # type: ignore[operator]


def offer_packing(whole: PreTrainedModel, layers: torch.nn.Module) -> None:
    """Give the layers the attention that takes trees, where it is theirs to choose. A class that is written for the
    attentions of transformers alone looks its layers or its mask up by their names, and knows no other."""
    if whole._supports_attention_backend:
        set_attention(layers, NAME)


def found_before(whole: PreTrainedModel, layers: torch.nn.Module) -> bool:
    """Whether the model has been tried, and nobody has changed its attention since."""
    return whole in _FOUND and (_FOUND[whole] is not None or attention_of(layers) == NAME)


def finding(whole: PreTrainedModel) -> str | None:
    """Why the rows of a model that was tried are padded; None where they are packed."""
    return _FOUND[whole]


def remember(whole: PreTrainedModel, refusal: str | None) -> None:
    _FOUND[whole] = refusal


def share_refusal(source: PreTrainedModel, twin: PreTrainedModel) -> None:
    """Let a model made after another, of its configuration as it now is, be padded for the same reason."""
    refusal = _FOUND.get(source)
    if refusal is not None:
        _FOUND[twin] = refusal
