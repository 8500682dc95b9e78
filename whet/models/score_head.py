"""The head of a reward model: one score off a hidden state, and how it lies in a checkpoint.

A head of one layer is the `score` of transformers' sequence classifiers, and its checkpoint an ordinary one. Deeper
heads have their layers stacked in the same tensor,

    score.weight  [1, H]                w         score = w h
                  [(K - 1) H + 1, H]    V .. U w  score = w tanh(U .. tanh(V h))

so that a program which expects one layer stops at a shape that does not fit, and never scores with random numbers.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import load_peft_weights
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import linear
from transformers.utils import cached_file

from whet.errors import ModelError
from whet.models.unreadable import unreadable

KEY = "score.weight"
ADAPTER_KEY = f"base_model.model.{KEY}"
"""The head's name in a checkpoint, and in an adapter that was trained with it."""


class ScoreHead(torch.nn.Module):
    """K layers without bias in one parameter, tanh between them.

    It computes in fp32 at least, under autocast too: a score in bf16 would have two or three digits.
    """

    def __init__(self, weight: Tensor) -> None:
        """`weight` is [(K - 1) H + 1, H]."""
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] to [..., 1]."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        *inner, last = torch.split(self.weight.to(wide), self.weight.shape[1])
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(wide)
            for layer in inner:
                hidden = torch.tanh(linear(hidden, layer))
            return linear(hidden, last)


def fresh_head(layers: int, width: int, *, std: float, seed: int) -> Tensor:
    """Normal weights from `seed`, of deviation `std` in the last layer; the others keep a vector as long as it is."""
    weight = torch.randn((layers - 1) * width + 1, width, generator=torch.Generator().manual_seed(seed))
    weight[:-1] *= width**-0.5
    weight[-1] *= std
    return weight


def num_layers(weight: Tensor, place: str) -> int:
    """Layers of a stored head. Raises ModelError where it has more than one label."""
    labels, width = weight.shape
    if (labels - 1) % width:
        raise ModelError(
            f"classifier with {labels} labels", field="model.path", found=repr(place), fix="a reward model has one"
        )
    return 1 + (labels - 1) // width


def checkpoint_head(path: str) -> Tensor | None:
    """The head of a checkpoint; None where it is a language model's."""
    name: str | None = "model.safetensors"
    with unreadable("cannot load the weights", field="model.path", path=path):
        index = _file(path, "model.safetensors.index.json")
        if index is not None:
            name = json.loads(index.read_text(encoding="utf-8"))["weight_map"].get(KEY)
        file = None if name is None else _file(path, name)
        if file is None:
            return None
        with safe_open(file, framework="pt") as tensors:
            return tensors.get_tensor(KEY) if KEY in set(tensors.keys()) else None


def adapter_head(adapter: str) -> Tensor | None:
    """The head that was trained with an adapter; None where that is a language model's."""
    with unreadable("cannot load the adapter", field="model.adapter", path=adapter):
        head: Tensor | None = load_peft_weights(adapter, device="cpu").get(ADAPTER_KEY)
    return head


def _file(path: str, name: str) -> Path | None:
    """A checkpoint's file, on this disk or from the hub; None where it has none of that name."""
    found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
