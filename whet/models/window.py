"""Layers with a sliding window, which packed rows know nothing of: they are packed while no row is longer than it."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakSet

from transformers import PreTrainedModel

from whet.schema.packed import Tree

_TOLD: WeakSet[PreTrainedModel] = WeakSet()
"""Models of which it has been said that a row was longer."""


def window_of(whole: PreTrainedModel) -> int | None:
    """Tokens that the layers with a sliding window see; shorter rows do not notice it."""
    config = text_config(whole)
    slides = "sliding_attention" in (config.get("layer_types") or ()) or (
        not config.get("layer_types") and config.get("sliding_window")
    )
    return config.get("sliding_window") if slides else None


def text_config(whole: PreTrainedModel) -> dict[str, Any]:
    """The shape of the language model, a vision-language model's included."""
    config: dict[str, Any] = whole.config.get_text_config().to_dict()
    return config


def longest_row(trees: tuple[Tree, ...]) -> int:
    """Tokens of a prompt and a branch."""
    return max(tree.prompt + max(tree.branches, default=0) for tree in trees)


def tell_once(whole: PreTrainedModel, length: int, window: int) -> None:
    """Say that a row does not fit the window, the first time that one of this model's does not."""
    if whole in _TOLD:
        return
    _TOLD.add(whole)
    warnings.warn(
        f"rows longer than the sliding window of {type(whole).__name__} are padded, not packed: one has {length} "
        f"tokens, the window {window}", stacklevel=4,
    )  # fmt: skip
