"""Who is measured: a model in memory under the name it has in tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from whet.data.render import Renderer
from whet.models.load import end_ids
from whet.rollout.engine import Engine
from whet.rollout.native import NativeEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model ready to answer."""

    label: str
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer

    def engine(self, batch_size: int) -> Engine:
        ends = end_ids(self.tokenizer, self.model, self.renderer.end_id)
        return NativeEngine(self.model, self.tokenizer, batch_size=batch_size, end_ids=ends)


RefLoader = Callable[[str], Subject]
"""Loads a model by name (`base`, a stage, a directory) for tasks that need a second one."""
