"""The last layer where somebody reads it.

Behind its attention every token goes its own way. So of the last layer's feed-forward part, more than half of a layer's
work, and of the norm behind it, only those tokens are wanted whose output is read: the last one of each row for a
reward model, those before the targets for a policy, which leaves out a long prompt.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from whet.models.vision import language_layers

SHARE = 0.5
"""Part of a row's tokens up to which they are picked out; with more the few rows saved are not worth other shapes."""
KINDS = ("llama", "mistral", "qwen2", "qwen3", "qwen2_5_vl_text")
"""Model types whose layer is the one below, without dropout on its way, and whose last layer's output goes to the norm
as it is. Who asks for it tries it as well."""


def read_last_layer(whole: PreTrainedModel) -> bool:
    """Let the model's last layer go on with the tokens that `Layout.read` names. False for other kinds of models, and
    for layers that are not transformers' own: what those do only while they train, no trial shows."""
    if whole.config.get_text_config().model_type not in KINDS:
        return False
    last = _last(whole)
    if not isinstance(last, ReadLayer):
        if not type(last).__module__.startswith("transformers.models."):
            return False
        last.__class__ = _reading(type(last))  # type: ignore[arg-type]
    return True


def leave_last_layer(whole: PreTrainedModel) -> None:
    """The way back."""
    last = _last(whole)
    if isinstance(last, ReadLayer):
        mixin, last.__class__ = type(last).__bases__
        assert mixin is ReadLayer, "not wrapped by anybody since"


def reads_last_layer(whole: PreTrainedModel) -> bool:
    """Whether it does."""
    return whole.config.get_text_config().model_type in KINDS and isinstance(_last(whole), ReadLayer)


def _last(whole: PreTrainedModel) -> torch.nn.Module:
    layers: Any = language_layers(whole)
    last: torch.nn.Module = layers.layers[-1]
    return last


class ReadLayer(torch.nn.Module):
    """A mixin before a decoder's own layer: [1, T, H] to [1, N, H] at the N tokens of `trees.read`."""

    self_attn: torch.nn.Module
    mlp: torch.nn.Module
    input_layernorm: torch.nn.Module
    post_attention_layernorm: torch.nn.Module

    def forward(self, hidden_states: Tensor, *args: Any, **given: Any) -> Any:
        layout = given.get("trees")
        if args or layout is None or layout.read is None:
            return super().forward(hidden_states, *args, **given)
        mixed, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **given)
        x = (hidden_states + mixed)[:, layout.read]
        return x + self.mlp(self.post_attention_layernorm(x))


@cache
def _reading(kind: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """Under the name of the layer's own class, by which transformers says what is not to be split over devices."""
    return type(kind.__name__, (ReadLayer, kind), {})
