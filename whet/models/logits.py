"""What an architecture does to its logits, which its configuration has numbers for: a factor, a cap.

    logits = cap tanh(scale (W h + b) / cap)

One number means different things to different families (Granite divides by `logits_scaling`, HyperCLOVAX multiplies),
and some have one that they do not use. So what they may mean is tried against the model's own logits, once a model, and
a model that does something else is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import inf, prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from whet.errors import ModelError, first_line
from whet.models.mode import trying
from whet.models.vision import language_layers

FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier", "logits_mup_width_multiplier")
"""What a configuration calls a number that logits may be multiplied by, or divided by."""
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
PROBE_TOKENS = 4
LOUD, LARGEST = 512.0, 16384.0
"""The largest logit of the trial before a cap, above all that are in use; and the largest number of a hidden state.
Both are within fp16."""


@dataclass(frozen=True, slots=True)
class Transform:
    """From what the head's layer gives to logits."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, products: Tensor) -> Tensor:
        """In fp32 at least."""
        logits = products.to(torch.promote_types(products.dtype, torch.float32)) * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


_FOUND: WeakKeyDictionary[PreTrainedModel, Transform] = WeakKeyDictionary()


def logit_transform(whole: PreTrainedModel) -> Transform:
    """What the model does to its logits. Its first call takes a row of a few tokens through the model.

    Raises ModelError where that is something that is not known here.
    """
    if whole not in _FOUND:
        _FOUND[whole] = _tried(whole)
    return _FOUND[whole]


def _tried(whole: PreTrainedModel) -> Transform:
    name, head = type(whole).__name__, whole.get_output_embeddings()
    if head is None:
        raise _unknown(name, "it has no head")
    try:
        with trying(whole):
            products, logits = _both(whole, head)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        raise ModelError(
            f"{name} could not be tried out on a few tokens", field="model.path", found=first_line(error),
            fix="take a model of another family",
        ) from error  # fmt: skip
    if products.shape != logits.shape:
        raise _unknown(name, f"{logits.shape[-1]} logits, and a head of {products.shape[-1]}")
    candidates = _candidates(whole.config.get_text_config())
    off, transform = min(((_off(each(products), logits), each) for each in candidates), key=lambda pair: pair[0])
    narrow = products.dtype in (torch.bfloat16, torch.float16)
    if not off <= (2e-2 if narrow else 1e-3):
        raise _unknown(name, f"logits that are {off:.2g} of their size away from those of the head")
    return transform


def _candidates(config: Any) -> Iterator[Transform]:
    """Everything that the numbers of a configuration may mean."""
    factors = [value for value in (_number(config, name) for name in FACTORS) if value not in (0.0, 1.0)]
    caps = [value for value in (_number(config, name) for name in CAPS) if value]
    for powers, cap in product(product((1, -1, 0), repeat=len(factors)), [*caps, None]):
        yield Transform(prod(factor**power for factor, power in zip(factors, powers, strict=True)), cap)


def _number(config: Any, name: str) -> float:
    """0 where there is none: MPT has a word in its place."""
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) else 0.0


def _both(whole: PreTrainedModel, head: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """[2 T, V] what the head's layer gives for some hidden states, and the model's logits for the same.

    Half of the hidden states are the model's own, the others so large that no cap is missed.
    """
    given: list[Tensor] = []

    def louder(_: torch.nn.Module, __: Any, output: Any) -> Any:
        hidden = output.last_hidden_state
        factor = LOUD / _largest(_product(head, hidden))
        output["last_hidden_state"] = torch.cat([hidden, hidden * min(factor, LARGEST / _largest(hidden))])
        given.append(output["last_hidden_state"])
        return output

    hook = _last(whole).register_forward_hook(louder)
    try:
        ids = torch.arange(1, 1 + PROBE_TOKENS, device=next(whole.parameters()).device)
        logits = whole(input_ids=ids.unsqueeze(0), use_cache=False).logits
    finally:
        hook.remove()
    if not given:
        raise ValueError("made without its layers")
    return _product(head, given[-1]).flatten(0, 1), logits.flatten(0, 1).float()


def _last(whole: PreTrainedModel) -> torch.nn.Module:
    """Whose output the model makes its logits of: the layers, or what is in a wrapper that it passes by (OPT)."""
    layers, decoder = language_layers(whole), whole.get_decoder()
    return decoder if any(decoder is part for part in layers.modules()) else layers


def _product(head: torch.nn.Module, hidden: Tensor) -> Tensor:
    """In the type of the head's weights, which is not everywhere that of the hidden states."""
    weight = next(head.parameters(), hidden)
    out: Tensor = head(hidden if torch.is_autocast_enabled(hidden.device.type) else hidden.to(weight.dtype))
    return out


def _largest(x: Tensor) -> float:
    return float(x.abs().max().clamp_min(1e-6))


def _off(ours: Tensor, theirs: Tensor) -> float:
    """The largest relative difference of a token's logits."""
    distance = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(1e-6)
    return float(distance.nan_to_num(inf).max())


def _unknown(name: str, found: str) -> ModelError:
    return ModelError(
        f"{name} makes its logits in a way that is not known here", field="model.path", found=found,
        fix="take a model of another family",
    )  # fmt: skip
