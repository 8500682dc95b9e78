"""The merge stage: one ordinary checkpoint out of a base and its adapter."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from whet.config.model import Model
from whet.config.reward import RewardHead
from whet.config.stage import MergeStage
from whet.errors import RunError
from whet.models.four_bit import trained_on
from whet.models.load import load_model, save_trained
from whet.models.merge import (
    logprob_difference,
    merge_adapter,
    merge_reward_adapter,
    probe_logprobs,
    probe_scores,
    score_difference,
)
from whet.models.reward import load_reward_model, save_reward_model
from whet.models.score_head import adapter_head
from whet.runs.files import replacing_folder
from whet.schema.artifacts import ModelRef, StageResult
from whet.stages.context import Context
from whet.stages.rendering import tokenizer_of

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
    tokenizer = tokenizer_of(context.start, config)
    probes = [tokenizer(text).input_ids for text in PROBES]
    scores = adapter_head(context.start.adapter) is not None
    if config.quantization is None:
        config = config.model_copy(update={"quantization": trained_on(context.start.adapter)})
    trained = _on_both_bases(context.start, config, probes, scores=scores) if config.quantization is not None else None
    if trained is not None:
        print(f"{stage.name}: {trained.describe(stage.onto)}")
    model = _loaded(context.start, config if stage.onto == "dequantised" else _unquantised(config), scores=scores)
    merged, difference = (merge_reward_adapter if scores else merge_adapter)(
        model, probes, dtype=DTYPES[stage.dtype], tolerance=stage.tolerance,
        before=None if trained is None else trained.before,
    )  # fmt: skip
    with replacing_folder(target) as folder:
        (save_reward_model if scores else save_trained)(merged, tokenizer, folder)
    name = "max_score_difference" if scores else "max_logprob_difference"
    metrics = {name: difference} | ({} if trained is None else trained.metrics(name))
    return StageResult(metrics=metrics, model=ModelRef(path=str(target)))


@dataclass(frozen=True, slots=True)
class OnBothBases:
    """What an adapter says that was trained on weights in 4 bits: on them, and how far from it on others."""

    before: Sequence[Tensor]
    """Of each probe, as trained."""
    dequantised: float
    """Largest difference on the same weights in fp32."""
    original: float
    """Largest difference on the weights of the checkpoint."""
    what: str

    def describe(self, onto: str) -> str:
        return (
            f"on the dequantised weights {self.what} differ from those in training by at most {self.dequantised:.2g}, "
            f"on the original ones by {self.original:.2g}; merged onto the {onto} ones"
        )

    def metrics(self, name: str) -> dict[str, float]:
        return {f"dequantised/{name}": self.dequantised, f"original/{name}": self.original}


def _on_both_bases(
    start: ModelRef, config: Model, probes: Sequence[Sequence[int]], *, scores: bool
) -> OnBothBases:
    measure, compare = (probe_scores, score_difference) if scores else (probe_logprobs, logprob_difference)
    before = measure(_loaded(start, config, scores=scores, plain=False), probes)
    dequantised = measure(_loaded(start, config, scores=scores), probes)
    original = measure(_loaded(start, _unquantised(config), scores=scores), probes)
    return OnBothBases(
        before=before, dequantised=compare(dequantised, before), original=compare(original, before),
        what="scores" if scores else "log-probs",
    )


def _loaded(start: ModelRef, config: Model, *, scores: bool, plain: bool = True) -> PeftModel:
    """In fp32, the adapter on its base; onto another base on purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* was trained on a base in ", category=UserWarning)
        if scores:
            model = load_reward_model(start, config, RewardHead(), dtype=torch.float32, plain=plain)
        else:
            model = load_model(start, config, dtype=torch.float32, plain=plain)
    assert isinstance(model, PeftModel), "there is an adapter"
    return model


def _unquantised(config: Model) -> Model:
    return config.model_copy(update={"quantization": None})
