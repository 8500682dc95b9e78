"""A stage of a plan as a setting: what trains, in which types, beside which other models, on which micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from whet.config.engine import Native
from whet.config.judge import Asking
from whet.config.model import Model
from whet.config.rewards import RewardModel
from whet.config.stage import (
    DpoStage,
    KtoStage,
    OnlineDpoStage,
    OnlineStage,
    PpoStage,
    RewardStage,
    RewardWeightedStage,
    SftStage,
    SoftPreferenceStage,
    TrainStage,
)
from whet.config.value import ModelValue, PolicyValue
from whet.estimate.activations import kept_bytes
from whet.estimate.setting import Beside, Decoding, MicroBatch, Setting, Sharding, Trains
from whet.estimate.time import Work
from whet.models.memory import (
    KEPT_HEADS,
    KEPT_INNER,
    KEPT_WIDTHS,
    LEAST,
    SHARE,
    Budget,
    budget_within,
    quantised_bytes,
)
from whet.models.repeated import missing, row_step
from whet.rollout.build import engine_of_another
from whet.schema.shape import ModelShape, sum_of
from whet.stages.estimate.batches import keys_met, offline_batches, online_batch, rows_as_one
from whet.stages.estimate.lengths import Lengths
from whet.stages.inputs import sections_in
from whet.train.bind import pairwise_objective, weighted_objective

SAMPLE = 2000
"""Rows that targets and attention are counted on; the rest is as these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the plan is to run."""

    on_cpu: bool
    memory: float
    """Bytes of a rank's device, or of the host: what a stage fits its passes to."""
    room: float
    """Bytes a rank may take."""
    ranks: int = 1
    sharding: Sharding = "none"
    cpu_offload: bool = False
    libraries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A stage, the model it starts from, and where it runs: what a change for less memory changes."""

    stage: TrainStage
    model: Model
    place: Place
    continues: bool
    """The stage goes on from an adapter, whatever `model.lora` says."""
    file_bytes: int
    """Of the weights' files of the model it starts from."""
    lengths: Callable[[TrainStage, Model], Lengths]
    shape: Callable[[str, Model], ModelShape]
    """Of a checkpoint, under the model section's adapter."""


def setting_of(situation: Situation) -> Setting:
    """Everything that memory depends on, with the micro-batch that takes most."""
    stage, model, place = situation.stage, situation.model, situation.place
    shape, trains = situation.shape(model.path, model), _trains(situation)
    arithmetic = _arithmetic(stage.train.arithmetic, on_cpu=place.on_cpu)
    budget = _budget(situation, shape, 4 if arithmetic == "fp32" else 2)
    batches = tuple(_filled(batch, shape, place, arithmetic) for batch in _batches(situation, budget))
    decoding = _decoding(stage, situation, shape, 4 if arithmetic == "fp32" else 2)
    setting = Setting(
        shape=shape, on_cpu=place.on_cpu, arithmetic=arithmetic, trains=trains,
        rank=model.lora.rank if model.lora is not None and trains == "adapter" else 0,
        dropout=model.lora is not None and model.lora.dropout > 0,
        weights=stage.train.weights, optimizer=stage.train.optimizer,
        score_head=_score_head(stage, shape), scores=isinstance(stage, RewardStage), trains_vision=model.vision.train,
        micro_batch=batches[0], several=_several(situation, batches[0]),
        beside=tuple(_beside(situation, trains)),
        value_model=isinstance(stage, PpoStage) and isinstance(stage.value, ModelValue),
        decoding=decoding, pass_tokens=batches[0].tokens if _reads_reference(stage) or decoding else 0,
        file_bytes=situation.file_bytes, libraries=place.libraries,
        four_bits=quantised_bytes(model.quantization) if model.quantization is not None else 0.0,
        offload_activations=stage.train.activation_offload and not place.on_cpu,
        ranks=place.ranks, sharding=place.sharding, cpu_offload=place.cpu_offload,
    )  # fmt: skip
    return max((replace(setting, micro_batch=batch) for batch in batches), key=kept_bytes)


def _filled(batch: MicroBatch, shape: ModelShape, place: Place, arithmetic: str) -> MicroBatch:
    """With what a CPU's narrow products want behind it (`whet.models.repeated`)."""
    dtype = torch.float32 if arithmetic == "fp32" else torch.bfloat16
    device = torch.device("cpu" if place.on_cpu else "cuda")
    step = row_step(sum_of(shape.products) + shape.experts)
    return replace(batch, filling=missing(batch.tokens, dtype, device, step))


def _trains(situation: Situation) -> Trains:
    if isinstance(situation.stage, RewardStage) and situation.stage.head.freeze_backbone:
        return "head"
    return "adapter" if situation.continues or situation.model.lora is not None else "all"


def _arithmetic(precision: str, *, on_cpu: bool) -> Literal["fp32", "bf16", "fp16"]:
    """As `whet.models.load.compute_dtype`, for a device that need not be here: GPUs have bf16."""
    match precision:
        case "bf16":
            return "bf16"
        case "fp16":
            return "fp16"
        case "auto" if not on_cpu:
            return "bf16"
        case _:
            return "fp32"


def _budget(situation: Situation, shape: ModelShape, item: int) -> Budget:
    """The tokens a pass takes, as the stage will choose them (`whet.models.memory`)."""
    asked = situation.stage.train.micro_batch_tokens
    if asked is not None:
        return Budget(asked, asked)
    numbers = KEPT_WIDTHS * shape.width + KEPT_INNER * shape.inner + KEPT_HEADS * shape.attention_width
    return budget_within(situation.place.memory, shape.layers * numbers * item, on_cpu=situation.place.on_cpu)


def _batches(situation: Situation, budget: Budget) -> tuple[MicroBatch, ...]:
    stage, lengths = situation.stage, situation.lengths(situation.stage, situation.model)
    # Every k-th layer, and what is selected, count as if all were kept: never too little.
    recompute, ranks = stage.train.gradient_checkpointing is True, situation.place.ranks
    if isinstance(stage, OnlineStage):
        return (online_batch(stage, lengths, budget, recompute=recompute, ranks=ranks),)
    return offline_batches(stage, lengths, budget, recompute=recompute, ranks=ranks)


def _several(situation: Situation, largest: MicroBatch) -> bool:
    """Whether a step may have more than one micro-batch: its records are more tokens than the largest of them."""
    stage = situation.stage
    if isinstance(stage, OnlineStage):
        return stage.train.batch_size > situation.place.ranks
    lengths = situation.lengths(stage, situation.model).tokens
    own = max(1, stage.train.batch_size // situation.place.ranks)
    return own > 1 and float(lengths.mean()) * own > largest.tokens * 0.9


def _score_head(stage: TrainStage, shape: ModelShape) -> int:
    match stage:
        case RewardStage():
            layers = stage.head.layers
        case PpoStage(value=PolicyValue(layers=layers)):
            pass
        case _:
            return 0
    return ((layers - 1) * shape.width + 1) * shape.width


def _reads_reference(stage: TrainStage) -> bool:
    match stage:
        case SftStage() | RewardStage():
            return False
        case DpoStage(objective=objective) | OnlineDpoStage(objective=objective):
            return pairwise_objective(objective).needs_reference
        case KtoStage():
            return True
        case RewardWeightedStage() | SoftPreferenceStage():
            return weighted_objective(stage.objective, "reward").needs_reference
        case _:
            return stage.objective.needs_reference


def _beside(situation: Situation, trains: Trains) -> Iterator[Beside]:
    """Models that are held beside the one that trains. Judges behind servers are elsewhere."""
    stage, place = situation.stage, situation.place
    if not isinstance(stage, SftStage | RewardStage) and _reads_reference(stage):
        config = stage.reference
        if config.model != "start" or trains == "all":
            there = place.on_cpu or config.device == "cpu"
            yield Beside(part="reference model", shape=_another(situation, config.model), on_cpu=there)
    if not isinstance(stage, OnlineStage):
        return
    for section in sections_in(stage.reward):
        match section:
            case RewardModel():
                shape = _another(situation, section.path)
                yield Beside(part="reward model", shape=shape, on_cpu=place.on_cpu or section.device == "cpu")
            case Asking(engine=engine) if isinstance(engine or engine_of_another(stage.rollout.engine), Native):
                yield Beside(part="judge", shape=_another(situation, section.model), on_cpu=place.on_cpu)


def _another(situation: Situation, name: str) -> ModelShape:
    """The shape of a model that is named by a stage, else of a checkpoint; stages' models have the plan's shape."""
    model = situation.model
    return situation.shape(name if Path(name).is_dir() else model.path, model)


def _decoding(stage: TrainStage, situation: Situation, shape: ModelShape, item: int) -> Decoding | None:
    """What the engine inside this process draws at once; a server's memory is its own."""
    if not isinstance(stage, OnlineStage) or not isinstance(stage.rollout.engine, Native):
        return None
    rollout, place = stage.rollout, situation.place
    prompts = math.ceil(stage.train.batch_size / place.ranks)
    longest = int(situation.lengths(stage, situation.model).tokens.max())
    answer, size = rollout.max_new_tokens, rollout.group_size
    places = max(LEAST, int(SHARE * place.memory / (2 * shape.layers * shape.key_width * item)))
    together = max(1, min(size, rollout.batch_size, (places - longest) // answer))
    groups = max(1, min(prompts * -(-size // together), rollout.batch_size // together,
                        places // (longest + together * answer)))  # fmt: skip
    return Decoding(rows=groups * together, prompts=groups, prompt_tokens=longest, answer_tokens=answer)


def work_of(situation: Situation, setting: Setting) -> Work | None:
    """What an epoch computes; None where lengths are assumed and so the number of rows is not known."""
    stage = situation.stage
    lengths = situation.lengths(stage, situation.model)
    if lengths.assumed:
        return None
    num, recomputed = len(lengths.tokens), setting.micro_batch.recompute
    steps = math.ceil(num / stage.train.batch_size)
    if isinstance(stage, OnlineStage):
        return _online_work(stage, lengths, steps, recomputed)
    sample = range(0, num, max(1, num // SAMPLE))
    counted = rows_as_one(lengths, sample)
    scale = float(lengths.tokens.sum()) / max(1, counted.tokens)
    cached = not isinstance(stage, SftStage | RewardStage) and stage.reference.cache
    reference = (1.0 / stage.train.epochs if cached else 1.0) if _reads_reference(stage) else 0.0
    return Work(
        records=num, steps=steps, tokens=int(lengths.tokens.sum()), targets=int(scale * counted.targets),
        seen=scale * keys_met(lengths, sample), extra_passes=reference + (1.0 if isinstance(stage, KtoStage) else 0.0),
        recomputed=recomputed,
    )  # fmt: skip


def _online_work(stage: OnlineStage, lengths: Lengths, steps: int, recomputed: bool) -> Work:
    """Of answers that are as long as they may be."""
    num, answer, size = len(lengths.tokens), stage.rollout.max_new_tokens, stage.rollout.group_size
    trained = 2 if isinstance(stage, OnlineDpoStage) else size
    passes = 1 if isinstance(stage, OnlineDpoStage) else stage.objective.passes
    prompts = float(lengths.tokens.sum())
    targets = num * trained * answer
    seen = (lengths.tokens.astype(float) ** 2 / 2 + trained * (answer * lengths.tokens + answer**2 / 2)).sum()
    minibatches = 1 if isinstance(stage, OnlineDpoStage) else stage.objective.minibatches
    return Work(
        records=num, steps=steps * minibatches * passes, tokens=int(passes * (prompts + targets)),
        targets=passes * targets, seen=passes * float(seen), generated=num * size * answer,
        extra_passes=(1.0 if _reads_reference(stage) else 0.0) / passes, recomputed=recomputed,
    )  # fmt: skip

