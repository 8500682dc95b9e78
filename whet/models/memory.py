"""How many tokens go through a model at once: an estimate from its shape and the machine's memory.

Deterministic on a machine, so that a run that is resumed splits its steps as before.
"""

from __future__ import annotations

import os
import sys

import torch
from transformers import PreTrainedModel

SHARE = 0.125
"""Part of the device's memory that the activations of one forward pass may take."""
LEAST, MOST = 1024, 65536
KEPT_WIDTHS, KEPT_INNER, KEPT_HEADS = 12, 5, 4
"""Numbers kept for the backward pass per token and layer: so many times the layer's width (norms, residuals, adapter
inputs), its feed-forward width, and its attention width."""


def token_budget(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> int:
    """Tokens whose activations fit into `SHARE` of the device's memory, rounded down to a power of two."""
    room = SHARE * device_memory(device) / activation_bytes(model, dtype)
    budget = 1 << max(0, int(room).bit_length() - 1)
    return max(LEAST, min(MOST, budget))


def activation_bytes(model: PreTrainedModel, dtype: torch.dtype) -> float:
    """Estimated bytes that one token's activations take until the backward pass, over all layers."""
    config = model.config.get_text_config().to_dict()
    width, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    inner = int(config.get("intermediate_size") or 4 * width)
    heads = int(config.get("num_attention_heads") or 1) * int(config.get("head_dim") or 0) or width
    numbers = KEPT_WIDTHS * width + KEPT_INNER * inner + KEPT_HEADS * heads
    return float(layers * numbers * dtype.itemsize)


def device_memory(device: torch.device) -> int:
    """Bytes of memory the device has in all."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if sys.platform == "win32":
        return 8 << 30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
