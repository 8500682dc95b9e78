"""From a plan to an estimate of each of its training stages, in order."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from whet.config.engine import Vllm
from whet.config.model import Model
from whet.config.plan import Plan
from whet.config.sharding import DeepSpeed, Fsdp, NoSharding
from whet.config.sharding import Sharding as ShardingConfig
from whet.config.stage import MergeStage, OfflinePolicyStage, OnlineStage, TrainStage
from whet.errors import ConfigError
from whet.estimate.memory import memory_of
from whet.estimate.result import StageEstimate
from whet.estimate.setting import Setting, Sharding
from whet.estimate.time import epoch_flops
from whet.models.load import pick_device
from whet.models.memory import device_memory, resident_bytes
from whet.models.shape import shape_of
from whet.schema.shape import ModelShape
from whet.stages.build import build_model
from whet.stages.estimate.advice import changes_for
from whet.stages.estimate.lengths import Lengths, lengths_of
from whet.stages.estimate.situation import Place, Situation, setting_of, work_of
from whet.train.sharding.zero_settings import read_settings

PAPER_GPU = 80e9
"""Bytes of a GPU that is not here and whose memory is not said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line says beside the plan."""

    gpus: int | None = None
    """So many GPUs, on paper; None takes the device that the plan would take here."""
    memory: float | None = None
    """Bytes of a device."""
    sharding: Sharding | None = None
    max_length: int | None = None
    """Rows of so many tokens, whatever the data says."""
    flops: float | None = None
    """FLOP/s that a rank reaches."""


def estimate_plan(plan: Plan, asked: Asked) -> tuple[StageEstimate, ...]:
    """Every stage of the plan that trains. Raises ConfigError where none does."""
    stages = [stage for stage in plan.stages if isinstance(stage, TrainStage)]
    if not stages:
        raise ConfigError("no stage of the plan trains", field="stages", fix="only training is estimated")
    build_model(plan.model)
    import_libraries()
    return tuple(_estimate(situation, asked) for situation in situations(plan, asked))


def situations(plan: Plan, asked: Asked) -> Iterator[Situation]:
    """The stages that train, each with what the stages before it leave."""
    lengths, shape = _remembering(asked)
    place = _place(plan, asked)
    base = _file_bytes(plan.model.path)
    adapters = {"base": plan.model.adapter is not None, "previous": plan.model.adapter is not None}
    files = {"base": base, "previous": base}
    for stage in plan.stages:
        if isinstance(stage, MergeStage):
            left = (False, base)
        elif isinstance(stage, TrainStage):
            situation = Situation(
                stage=stage, model=plan.model, place=place, continues=adapters.get(stage.start, adapters["previous"]),
                file_bytes=files.get(stage.start, files["previous"]), lengths=lengths, shape=shape,
            )  # fmt: skip
            setting = setting_of(replace(situation, place=replace(place, libraries=0)))
            yield situation
            whole = setting.trains == "all"
            saved = setting.shape.parameters * (4 if setting.weights == "fp32" else 2)
            left = (not whole, saved if whole else situation.file_bytes)
        else:
            continue
        adapters[stage.name], files[stage.name] = left
        if isinstance(stage, MergeStage | OfflinePolicyStage | OnlineStage):
            adapters["previous"], files["previous"] = left


def _remembering(
    asked: Asked,
) -> tuple[Callable[[TrainStage, Model], Lengths], Callable[[str, Model], ModelShape]]:
    """Lengths and shapes, each found once: advice asks for them again and again."""
    known: dict[str, Lengths] = {}

    def lengths(stage: TrainStage, model: Model) -> Lengths:
        key = f"{stage.kind} {stage.data.model_dump_json()} {model.path} {model.chat_template}"
        if key not in known:
            known[key] = lengths_of(stage, model, max_length=asked.max_length)
        return known[key]

    return lengths, cache(shape_of)


def _place(plan: Plan, asked: Asked) -> Place:
    """Ranks on a CPU share its memory; a GPU is a rank's own."""
    on_paper = asked.gpus is not None
    # On paper the plan's device is another machine's, and need not be on this one.
    device = None if on_paper else pick_device(plan.model.device, field="model.device")
    on_cpu = device is not None and device.type == "cpu"
    here = PAPER_GPU if device is None else float(device_memory(device))
    there = here if asked.memory is None else asked.memory
    ranks = asked.gpus or plan.launch.processes
    return Place(
        on_cpu=on_cpu, memory=here if on_cpu else there, room=there / ranks if on_cpu else there, ranks=ranks,
        sharding=asked.sharding or _sharding(plan.launch.sharding),
        cpu_offload=not on_cpu and _offloads(plan.launch.sharding),
    )  # fmt: skip


def _sharding(config: ShardingConfig) -> Sharding:
    """The plan's, in a word; DeepSpeed's own file says which ZeRO. Raises ConfigError where it says neither."""
    match config:
        case NoSharding():
            return "none"
        case Fsdp():
            return "fsdp"
        case DeepSpeed(config=path):
            return "zero2" if read_settings(path)["zero_optimization"]["stage"] == 2 else "zero3"


def _offloads(config: ShardingConfig) -> bool:
    """Whether a rank's parts lie in the host's memory. ZeRO-3 has weights among them, which go there by a key of
    their own; ZeRO-2 keeps 16-bit ones whole on every device."""
    match config:
        case Fsdp(cpu_offload=offloads):
            return offloads
        case DeepSpeed(config=path):
            zero = read_settings(path)["zero_optimization"]
            parts = ("offload_optimizer", "offload_param")[: zero["stage"] - 1]
            return all((zero.get(part) or {}).get("device") == "cpu" for part in parts)
        case _:
            return False


def _file_bytes(path: str) -> int:
    """Of all weights of a checkpoint on this disk."""
    return sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))


def import_libraries() -> None:
    """What a stage imports before it loads a model: their memory is part of the estimate, and it is measured."""
    import whet.stages.offline
    import whet.stages.online  # noqa: F401


def _estimate(situation: Situation, asked: Asked) -> StageEstimate:
    stage = situation.stage
    lengths = situation.lengths(stage, situation.model)
    gc.collect()
    situation = replace(situation, place=replace(situation.place, libraries=resident_bytes()))
    setting = setting_of(situation)
    memory, work = memory_of(setting), work_of(situation, setting)
    room = situation.place.room
    return StageEstimate(
        name=stage.name, kind=stage.kind, setting=setting, memory=memory, room=room,
        longest=int(lengths.tokens.max()), work=work, flops=None if work is None else epoch_flops(setting, work),
        notes=tuple(_notes(stage, setting, lengths)), rate=asked.flops,
        changes=() if memory.peak.bytes <= room else changes_for(situation),
    )  # fmt: skip


def _notes(stage: TrainStage, setting: Setting, lengths: Lengths) -> Iterator[str]:
    if lengths.assumed:
        yield lengths.assumed
    if setting.shape.vision:
        yield "pictures are counted as tokens; what the tower needs for its own pass is left out"
    if setting.decoding is not None:
        yield f"answers are taken to be as long as they may be, {stage.rollout.max_new_tokens} tokens"  # type: ignore[union-attr]
    if isinstance(stage, OnlineStage) and isinstance(stage.rollout.engine, Vllm):
        yield "the vLLM server's memory is its own and not counted here (its option gpu-memory-utilization)"
    if getattr(stage, "watch", ()):
        yield "the engine that answers the tasks of `watch` is left out"
    if setting.optimizer.startswith("paged"):
        yield "the optimiser's averages lie in pages, counted with the host's memory"
