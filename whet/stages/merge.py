"""The merge stage: one ordinary checkpoint out of a base and its adapter."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from whet.config.reward import RewardHead
from whet.config.stage import MergeStage
from whet.errors import RunError
from whet.models.load import load_model, load_tokenizer, save_trained
from whet.models.merge import merge_adapter, merge_reward_adapter
from whet.models.reward import load_reward_model, save_reward_model
from whet.models.score_head import adapter_head
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
    """Write the merged checkpoint, a language model's or a reward model's.

    Raises RunError without an adapter, ModelError where the merged model says something else than the adapter.
    """
    if context.start.adapter is None:
        raise RunError(
            "nothing to merge: the model has no adapter", field=f"{stage.name}.start", found=stage.start,
            fix="start from a stage that trained one, or set model.adapter",
        )  # fmt: skip
    config, target = context.model, context.paths.model
    tokenizer = load_tokenizer(
        context.start.path, chat_template=config.chat_template, trust_remote_code=config.trust_remote_code
    )
    probes = [tokenizer(text).input_ids for text in PROBES]
    if adapter_head(context.start.adapter) is not None:
        return _merge_reward_model(stage, context, tokenizer, probes)
    model = load_model(context.start, config, dtype=torch.float32)
    assert isinstance(model, PeftModel), "there is an adapter"
    merged, difference = merge_adapter(model, probes, dtype=DTYPES[stage.dtype], tolerance=stage.tolerance)
    with _written_whole(target) as folder:
        save_trained(merged, tokenizer, folder)
    return StageResult(metrics={"max_logprob_difference": difference}, model=ModelRef(path=str(target)))


def _merge_reward_model(
    stage: MergeStage, context: Context, tokenizer: PreTrainedTokenizerBase, probes: Sequence[Sequence[int]]
) -> StageResult:
    model = load_reward_model(context.start, context.model, RewardHead(), dtype=torch.float32)
    assert isinstance(model, PeftModel), "there is an adapter"
    merged, difference = merge_reward_adapter(model, probes, dtype=DTYPES[stage.dtype], tolerance=stage.tolerance)
    target = context.paths.model
    with _written_whole(target) as folder:
        save_reward_model(merged, tokenizer, folder)
    return StageResult(metrics={"max_score_difference": difference}, model=ModelRef(path=str(target)))


@contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """A folder to write into, which then takes the place of `target`."""
    temporary = target.with_name(f".{target.name}.tmp")
    with writing(target):
        shutil.rmtree(temporary, ignore_errors=True)
        yield temporary
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
