"""The merge stage: one ordinary checkpoint out of a base and its adapter."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from whet.config.stage import MergeStage
from whet.errors import RunError
from whet.models.load import load_model, load_tokenizer
from whet.models.merge import merge_adapter
from whet.runs.files import writing
from whet.schema.artifacts import ModelRef, StageResult
from whet.stages.context import Context

PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "12 + 30 = 42, and 7 * 6 = 42.",
    "床前明月光，疑是地上霜。",
    '{"name": "probe", "values": [1, 2.5, null]}',
)
"""Texts whose next-token log-probs are compared: prose, code, numbers, Chinese, JSON."""

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def run(stage: MergeStage, context: Context) -> StageResult:
    """Write the merged checkpoint. Raises RunError without an adapter, ModelError where the logits differ too much."""
    if context.start.adapter is None:
        raise RunError(
            "nothing to merge: the model has no adapter", field=f"{stage.name}.start", found=stage.start,
            fix="start from a stage that trained one, or set model.adapter",
        )  # fmt: skip
    config = context.model
    tokenizer = load_tokenizer(
        context.start.path, chat_template=config.chat_template, trust_remote_code=config.trust_remote_code
    )
    model = load_model(context.start, config, dtype=torch.float32)
    if not isinstance(model, PeftModel):
        raise TypeError(f"expected an adapter on the model, got {type(model).__name__}")
    probes = [tokenizer(text).input_ids for text in PROBES]
    merged, difference = merge_adapter(model, probes, dtype=DTYPES[stage.dtype], tolerance=stage.tolerance)
    target = context.paths.model
    write_checkpoint(merged, tokenizer, target)
    return StageResult(metrics={"max_logprob_difference": difference}, model=ModelRef(path=str(target)))


def write_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    with writing(target):
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
