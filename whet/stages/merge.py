"""The merge stage: one ordinary checkpoint out of a base and its adapter."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from whet.config.model import Model
from whet.config.reward import RewardHead
from whet.config.stage import MergeStage
from whet.errors import ModelError, RunError, first_line
from whet.models.four_bit import trained_on
from whet.models.load import load_model, pick_device, save_trained
from whet.models.merge import (
    logprob_difference,
    merge_adapter,
    merge_reward_adapter,
    probe_logprobs,
    probe_scores,
    score_difference,
)
from whet.models.placed import Placed
from whet.models.reward import load_reward_model, save_reward_model
from whet.models.score_head import adapter_head
from whet.runs.files import replacing_folder
from whet.schema.artifacts import ModelRef, StageResult
from whet.stages.context import Context
from whet.stages.rendering import end_as_turns_do, tokenizer_of

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

    Raises RunError without an adapter and where a device's memory runs out that the plan names, ModelError where the
    merged model says something else than the adapter.
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
    try:
        merged, metrics = _where_it_fits(stage, context.start, config, probes, scores=scores)
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"memory ran out: {'. '.join(first_line(error).split('. ')[:2])}", field="model.device",
            found=config.device, fix=f"merge on the CPU, in a run of its own: {_on_cpu(stage, context)}",
        ) from error  # fmt: skip
    if not scores:
        with suppress(ModelError):  # a template that nobody could train by says nothing, and is no matter of merging
            end_as_turns_do(merged, tokenizer, context.start.path, context.model)
    with replacing_folder(target) as folder:
        (save_reward_model if scores else save_trained)(merged, tokenizer, folder)
    return StageResult(metrics=metrics, model=ModelRef(path=str(target)))


def _where_it_fits(
    stage: MergeStage, start: ModelRef, config: Model, probes: Sequence[Sequence[int]], *, scores: bool
) -> tuple[PreTrainedModel, dict[str, float]]:
    """Merged on the device of the plan; under `auto` all of it once more on the CPU where that has no room.

    Whatever trained the adapter fitted its device, in a narrower type or in 4 bits; the base in fp32, which the sums
    are made in, may not. It goes through the host's memory anyway, so the CPU has room, and work for seconds. Not there
    to begin with, since 4 bits are made and compared where the adapter learnt on them.
    """
    place = Placed(
        lambda device: config.model_copy(update={"device": device.type}),
        pick_device(config.device, field="model.device"), fall_back=config.device == "auto", what="the merge",
    )  # fmt: skip
    return place.use(lambda placed: _merged(stage, start, placed, probes, scores=scores))


def _merged(
    stage: MergeStage, start: ModelRef, config: Model, probes: Sequence[Sequence[int]], *, scores: bool
) -> tuple[PreTrainedModel, dict[str, float]]:
    """The merged model, and how far it is from its adapter."""
    trained = _on_both_bases(start, config, probes, scores=scores) if config.quantization is not None else None
    if trained is not None:
        print(f"{stage.name}: {trained.describe(stage.onto)}")
    model = _loaded(start, config if stage.onto == "dequantised" else _unquantised(config), scores=scores)
    tied = getattr(model.config, "tie_word_embeddings", False)
    merged, difference = (merge_reward_adapter if scores else merge_adapter)(
        model, probes, dtype=DTYPES[stage.dtype], tolerance=stage.tolerance,
        before=None if trained is None else trained.before,
    )  # fmt: skip
    if tied and not merged.config.tie_word_embeddings:
        print(f"{stage.name}: the adapter parts the LM head from the embeddings; they are written as two tensors")
    name = "max_score_difference" if scores else "max_logprob_difference"
    return merged, {name: difference} | ({} if trained is None else trained.metrics(name))


def _on_cpu(stage: MergeStage, context: Context) -> str:
    """The command that does on the CPU what this stage does: a plan cannot be changed where a run has begun."""
    start = context.start
    model = context.model.model_copy(update={"path": start.path, "adapter": start.adapter, "device": "cpu"})
    asked = model.model_dump(
        mode="json", include={"path", "adapter", "device", "chat_template", "trust_remote_code", "quantization"},
        exclude_defaults=True,
    )  # fmt: skip
    settings = stage.model_dump(mode="json", include={"dtype", "tolerance", "onto"}, exclude_defaults=True)
    words = [f"{key}={value}" for key, value in [*((f"model.{key}", asked[key]) for key in asked), *settings.items()]]
    return shlex.join(["whet", "merge", *words])


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
        # An adapter on either side of tied weights, and on layers without a bias: merging sees to it, or refuses.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`", category=UserWarning)
        warnings.filterwarnings("ignore", message="`lora_bias=True` was passed", category=UserWarning)
        if scores:
            model = load_reward_model(start, config, RewardHead(), dtype=torch.float32, plain=plain)
        else:
            model = load_model(start, config, dtype=torch.float32, plain=plain)
    assert isinstance(model, PeftModel), "there is an adapter"
    return model


def _unquantised(config: Model) -> Model:
    return config.model_copy(update={"quantization": None})
