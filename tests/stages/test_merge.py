"""What a merged checkpoint takes along."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from whet.config.model import Lora, Model
from whet.config.stage import MergeStage
from whet.models.load import load_model, load_tokenizer, save_trained
from whet.runs.layout import StagePaths
from whet.schema.artifacts import ModelRef
from whet.stages import merge
from whet.stages.context import Context

TEMPLATE = "{% for turn in messages %}# {{ turn.content }}{% endfor %}"


@pytest.mark.parametrize("given", [False, True])
def test_the_chat_template_of_the_plan_else_of_the_adapter(tiny_checkpoint: Path, tmp_path: Path, given: bool) -> None:
    config = Model(path=str(tiny_checkpoint), lora=Lora(rank=2), device="cpu")
    trained = load_model(ModelRef(path=str(tiny_checkpoint)), config, dtype=torch.float32, trainable=True)
    save_trained(trained, load_tokenizer(str(tiny_checkpoint)), tmp_path / "adapter")
    (tmp_path / "adapter" / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "own.jinja").write_text(f"{TEMPLATE} of the plan")
    ref = ModelRef(path=str(tiny_checkpoint), adapter=str(tmp_path / "adapter"))
    model = config.model_copy(update={"chat_template": str(tmp_path / "own.jinja")}) if given else config
    stage, paths = MergeStage(name="merge", dtype="fp32"), StagePaths(tmp_path / "out")
    context = Context(model=model, start=ref, models={"base": ref}, paths=paths, folders={}, stage=stage)
    merged = merge.run(stage, context).model
    assert merged is not None
    assert load_tokenizer(merged.path).chat_template == (f"{TEMPLATE} of the plan" if given else TEMPLATE)
