"""Adapters that are tokens of their own before a prompt (prompt tuning, prefix tuning, p-tuning), which are refused.

They lie around the model and not in its layers. Rows are packed and scored by the layers, so such an adapter would be
loaded, left out of every number, and not be trained.
"""

from __future__ import annotations

from peft import PeftConfig

from whet.errors import ModelError
from whet.models.unreadable import unreadable


def refuse_prompts(adapter: str) -> None:
    """Raises ModelError for such an adapter, in a directory or on the hub, and for one that says nothing of itself."""
    with unreadable("cannot load the adapter", field="model.adapter", path=adapter):
        config = PeftConfig.from_pretrained(adapter)
    if config.is_prompt_learning:
        raise ModelError(
            "an adapter of prompts, not of layers", field="model.adapter", found=str(config.peft_type.value),
            fix="take a LoRA adapter",
        )  # fmt: skip
