"""Numbers of a configuration that may differ from layer to layer (Gemma 4), where one has to do for all."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


def largest(config: PretrainedConfig, name: str) -> Any:
    """The number, the largest where layers have their own; None where there is none."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # transformers refuses to say one number for layers that differ
        own = [getattr(layer, name, None) for layer in config.per_layer_config]
        return max((number for number in own if number is not None), default=None)
