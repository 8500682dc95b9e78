"""Which layers of a model get an adapter: the targets of a plan, and never those of eyes that do not train."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from whet.errors import ModelError
from whet.models.vision import vision_parts

ALL = "all-linear"


def adapted_layers(model: PreTrainedModel, targets: str | Sequence[str], *, vision: bool) -> str | list[str]:
    """The targets in peft's words.

    peft looks for the names in the whole model, and in a vision tower layers may have the same. So with eyes that stay
    as they are (`vision` false), the layers are named in full. Raises ModelError where there are none of the names.
    """
    eyes = tuple(f"{name}." for name in vision_parts(model))
    if not eyes or vision:
        return targets if isinstance(targets, str) else list(targets)
    head = model.get_output_embeddings()
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding) and not name.startswith(eyes)
    ]
    if isinstance(targets, str):
        plain = (name for name in layers if isinstance(model.get_submodule(name), torch.nn.Linear))
        return [name for name in plain if model.get_submodule(name) is not head]
    chosen = [name for name in layers if any(f".{name}".endswith(f".{target}") for target in targets)]
    if not chosen:
        raise ModelError(
            "no such layers outside of the vision tower", field="model.lora.targets", found=", ".join(targets),
            fix="set model.vision.train=true for layers of the tower",
        )  # fmt: skip
    return chosen
