"""Adapters that are not in the layers: refused in one line, wherever an adapter is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from whet.config.model import Model
from whet.config.reward import RewardHead
from whet.errors import ModelError
from whet.models.load import load_model
from whet.models.reward import load_reward_model
from whet.schema.artifacts import ModelRef

KINDS: dict[str, Callable[..., PeftConfig]] = {
    "PROMPT_TUNING": PromptTuningConfig,
    "PREFIX_TUNING": PrefixTuningConfig,
    "P_TUNING": PromptEncoderConfig,
}


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_one_line(kind: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    get_peft_model(model, KINDS[kind](task_type="CAUSAL_LM", num_virtual_tokens=3)).save_pretrained(tmp_path)
    ref, config = ModelRef(path=str(tiny_checkpoint), adapter=str(tmp_path)), Model(path=str(tiny_checkpoint))
    for load in (
        lambda: load_model(ref, config, dtype=torch.float32),
        lambda: load_model(ref, config, dtype=torch.float32, trainable=True),
        lambda: load_reward_model(ref, config, RewardHead(), dtype=torch.float32, trainable=True),
    ):
        with pytest.raises(ModelError, match=rf"^model\.adapter: an adapter of prompts.*found {kind}") as caught:
            load()
        assert "\n" not in str(caught.value)
