"""What to change where a stage does not fit: first what changes nothing but time, then what trains something else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from whet.config.engine import Native
from whet.config.model import Lora, Quantization
from whet.config.stage import OnlineStage, PpoStage, RewardStage, SftStage, TrainStage
from whet.estimate.memory import memory_of
from whet.estimate.result import Change
from whet.stages.estimate.situation import Situation, setting_of

WORTH = 0.99
"""A change that leaves more of the peak than this is not worth its line."""
RANKS = (2, 4, 8, 16, 32, 64, 128)
SHORTEST = 512
"""Tokens below which rows are not cut."""


@dataclass(frozen=True, slots=True)
class _Idea:
    keys: str
    cost: str
    then: Situation


def changes_for(situation: Situation) -> tuple[Change, ...]:
    """Changes on top of each other, until the stage fits or nothing is left."""
    chosen: list[Change] = []
    peak = memory_of(setting_of(situation)).peak.bytes
    for step in (
        _smaller_batches, _recompute, _offload_activations, _fewer_answers, _reference_on_cpu, _narrow_weights,
        _small_state, _shard, _adapter, _four_bits, _offload, _shorter_rows,
    ):  # fmt: skip
        best: tuple[_Idea, float] | None = None
        for idea in step(situation):
            after = memory_of(setting_of(idea.then)).peak.bytes
            if after < WORTH * (peak if best is None else best[1]):
                best = idea, after
            if after <= situation.place.room:
                break
        if best is not None:
            situation, peak = best[0].then, best[1]
            chosen.append(Change(keys=best[0].keys, cost=best[0].cost, peak=peak))
        if peak <= situation.place.room:
            break
    return tuple(chosen)


def _with_train(situation: Situation, **changes: object) -> Situation:
    stage = situation.stage
    return replace(situation, stage=_changed(stage, {"train": stage.train.model_copy(update=changes)}))


def _changed(stage: TrainStage, update: dict[str, object]) -> TrainStage:
    changed: TrainStage = stage.model_copy(update=update)
    return changed


def _smaller_batches(situation: Situation) -> Iterator[_Idea]:
    """Down to what the longest row takes: below, that row would be recomputed and nothing else is gained."""
    if isinstance(situation.stage, OnlineStage):
        return
    longest = int(situation.lengths(situation.stage, situation.model).tokens.max())
    if setting_of(situation).micro_batch.tokens > longest:
        then = _with_train(situation, micro_batch_tokens=longest)
        yield _Idea(f"train.micro_batch_tokens={longest}", "the same gradient, more passes", then)


def _recompute(situation: Situation) -> Iterator[_Idea]:
    if not situation.stage.train.gradient_checkpointing:
        then = _with_train(situation, gradient_checkpointing=True)
        yield _Idea("train.gradient_checkpointing=true", "the same gradient, about a third more time", then)


def _offload_activations(situation: Situation) -> Iterator[_Idea]:
    if not situation.place.on_cpu and not situation.stage.train.activation_offload:
        then = _with_train(situation, activation_offload=True)
        yield _Idea("train.activation_offload=true", "the same gradient, activations travel to the host and back", then)


def _fewer_answers(situation: Situation) -> Iterator[_Idea]:
    stage = situation.stage
    if not isinstance(stage, OnlineStage):
        return
    rows = stage.rollout.batch_size
    while rows > 1:
        rows //= 2
        rollout = stage.rollout.model_copy(update={"batch_size": rows})
        then = replace(situation, stage=_changed(stage, {"rollout": rollout}))
        yield _Idea(f"rollout.batch_size={rows}", "fewer answers drawn at once, slower", then)


def _reference_on_cpu(situation: Situation) -> Iterator[_Idea]:
    stage = situation.stage
    if situation.place.on_cpu or isinstance(stage, SftStage | RewardStage) or stage.reference.device == "cpu":
        return
    reference = stage.reference.model_copy(update={"device": "cpu"})
    then = replace(situation, stage=_changed(stage, {"reference": reference}))
    yield _Idea("reference.device=cpu", "the same numbers, its passes are slow", then)


def _narrow_weights(situation: Situation) -> Iterator[_Idea]:
    """On CPUs only where the plan computes in bf16 already: those without it are a hundred times slower."""
    setting = setting_of(situation)
    if setting.casts and setting.arithmetic == "bf16":
        then = _with_train(situation, weights="bf16_master")
        yield _Idea("train.weights=bf16_master", "weights and gradients in bf16, no update lost", then)


def _small_state(situation: Situation) -> Iterator[_Idea]:
    if situation.stage.train.optimizer == "adamw" and situation.place.sharding == "none":
        then = _with_train(situation, optimizer="adamw_8bit")
        yield _Idea("train.optimizer=adamw_8bit", "averages of 8 bits; needs bitsandbytes", then)


def _shard(situation: Situation) -> Iterator[_Idea]:
    """Over twice as many ranks each time, from those there are on. Sharded weights are fp32, and so is their state.
    On a CPU ranks share its memory: together they would hold more."""
    place, train = situation.place, situation.stage.train
    if place.on_cpu or _stays_whole(situation.stage):
        return
    back = " train.weights=fp32" if train.weights != "fp32" else ""
    back += " train.optimizer=adamw" if train.optimizer != "adamw" else ""
    situation = _with_train(situation, weights="fp32", optimizer="adamw")
    for ranks in RANKS:
        if ranks < max(2, place.ranks) or (ranks == place.ranks and place.sharding != "none"):
            continue
        then = replace(situation, place=replace(place, ranks=ranks, sharding="fsdp"))
        keys = f"launch.processes={ranks} launch.sharding=fsdp{back}"
        yield _Idea(keys, f"{ranks} ranks share weights and state", then)


def _stays_whole(stage: TrainStage) -> bool:
    """Whether a run would refuse FSDP."""
    elsewhere = isinstance(stage, OnlineStage) and not isinstance(stage.rollout.engine, Native)
    watched = bool(getattr(stage, "watch", ()))
    return isinstance(stage, PpoStage) or elsewhere or watched or stage.train.arithmetic == "fp16"


def _adapter(situation: Situation) -> Iterator[_Idea]:
    if setting_of(situation).trains == "all":
        then = replace(situation, model=situation.model.model_copy(update={"lora": Lora()}))
        yield _Idea("model.lora={}", "an adapter of rank 16 trains instead of all weights", then)


def _four_bits(situation: Situation) -> Iterator[_Idea]:
    """Parts of weights in 4 bits are not trained beside."""
    adapted = setting_of(situation).trains == "adapter"
    if adapted and situation.model.quantization is None and situation.place.sharding == "none":
        then = replace(situation, model=situation.model.model_copy(update={"quantization": Quantization()}))
        yield _Idea("model.quantization={}", "the frozen base in 4 bits (QLoRA), its numbers rounded", then)


def _offload(situation: Situation) -> Iterator[_Idea]:
    place = situation.place
    if not place.on_cpu and place.sharding == "fsdp" and place.ranks > 1:
        then = replace(situation, place=replace(place, cpu_offload=True))
        yield _Idea("launch.sharding={type: fsdp, cpu_offload: true}", "weights and state on the hosts, slow", then)


def _shorter_rows(situation: Situation) -> Iterator[_Idea]:
    stage = situation.stage
    length = min(stage.data.max_length, int(situation.lengths(stage, situation.model).tokens.max()))
    while length > SHORTEST and not isinstance(stage, OnlineStage):
        length //= 2
        data = stage.data.model_copy(update={"max_length": length})
        then = replace(situation, stage=_changed(stage, {"data": data}))
        yield _Idea(f"data.max_length={length}", "longer rows are cut: another training", then)
