"""An engine section -> the engine of a model that does not train.

    engine = open_engine(config.engine, served, Answering.by(renderer, batch_size=32))

The model is loaded into this process only where the engine runs here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, assert_never, runtime_checkable

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from whet.config.engine import Engine as EngineConfig
from whet.config.engine import Http, Native, Ray, Vllm
from whet.config.model import Model
from whet.data.pictures import PictureReader
from whet.data.render import Renderer
from whet.errors import ConfigError
from whet.models.backbone import unwrapped
from whet.models.four_bit import is_quantised, trained_on
from whet.models.load import compute_dtype, end_ids, load_model, pick_device
from whet.models.memory import has_room_for_copy
from whet.models.placed import Placed
from whet.models.recorded import Record, cuda_graph
from whet.models.snapshot import Whole
from whet.rollout.engine import Engine
from whet.rollout.http import http_engine
from whet.rollout.moving import MovingEngine
from whet.rollout.native import NativeEngine
from whet.rollout.vllm import Checkpoint, Followed, VllmEngine
from whet.schema.artifacts import ModelRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Which model answers, by where it lies, and how it is loaded."""

    ref: ModelRef
    model: Model
    """The plan's model section: device, attention, ..."""
    folder: Path
    """Where a server's log goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """What an engine must know to answer."""

    tokenizer: PreTrainedTokenizerBase
    end_id: int
    """What ends a turn by the template."""
    batch_size: int
    """Samples decoded at the same time inside this process."""
    exact: bool = False
    """Leave an adapter beside weights in a narrow type, where folding it in would round small updates away."""
    reader: PictureReader | None = None
    """Loads the pictures of requests, where the model takes any."""

    @classmethod
    def by(cls, renderer: Renderer, *, batch_size: int, exact: bool = False) -> Answering:
        """In the words of whoever asks."""
        return cls(
            tokenizer=renderer.template.tokenizer, end_id=renderer.end_id, batch_size=batch_size, exact=exact,
            reader=renderer.reader,
        )  # fmt: skip


def open_engine(config: EngineConfig, served: Served, answering: Answering) -> Engine:
    """Whoever opens an engine closes it. One of this process moves to the CPU where its device has no room for it and
    `model.device` is auto. Raises ModelError where the model cannot be loaded."""
    match config:
        case Native():
            return _placed_engine(config, served, answering)
        case Http():
            return http_engine(config)
        case Vllm():
            return VllmEngine(config, checkpoint_of(served, answering))
        case Ray():
            from whet.rollout.ray import RayEngine

            return RayEngine(config, served, answering)
        case _:
            assert_never(config)


def _placed_engine(config: Native, served: Served, answering: Answering) -> Engine:
    def make(device: torch.device) -> NativeEngine:
        there = replace(served, model=served.model.model_copy(update={"device": device.type}))
        return native_engine(load_for_generation(there, config.precision), answering, config)

    device = pick_device(served.model.device, field="model.device")
    if device.type == "cpu":
        return make(device)
    placed = Placed(make, device, fall_back=served.model.device == "auto", what=f"the engine of {served.ref.path}")
    placed.use(lambda engine: engine)
    return MovingEngine(placed)


def policy_engine(
    config: EngineConfig,
    model: PreTrainedModel | PeftModel,
    served: Served,
    answering: Answering,
    *,
    dtype: torch.dtype,
    ahead: bool = False,
    whole: Whole | None = None,
) -> Engine:
    """The engine of a model that trains here, and that `sync` follows. `dtype` is that of the training's products.

    Of weights in 4 bits it holds a copy in `dtype` where the memory has room for one, or where it answers `ahead`,
    while the model trains; else it answers with the model itself.
    `whole` gathers weights that will be in parts. Raises ConfigError for an engine that cannot follow such, and for a
    model of which there is no copy that could answer `ahead`.
    """
    if whole is not None and not isinstance(config, Native):
        raise ConfigError(
            "does not go with launch.sharding", field="rollout.engine.type", found=config.type,
            fix="use the native engine, or leave launch.sharding out",
        )  # fmt: skip
    match config:
        case Native():
            room = has_room_for_copy(unwrapped(model), dtype)
            engine = NativeEngine(
                model, answering.tokenizer, batch_size=answering.batch_size,
                end_ids=end_ids(answering.tokenizer, model, answering.end_id),
                dtype=dtype if room or ahead or not is_quantised(model) else None,
                pack_frozen=room, reader=answering.reader, whole=whole, record=_record(config, model),
            )  # fmt: skip
            if ahead and engine.answers_with(model):
                raise ConfigError(
                    "the adapter cannot be folded into a copy, and the model cannot answer while it trains",
                    field="rollout.staleness", found="1", fix="leave it at 0, or train a plain LoRA adapter",
                )  # fmt: skip
            return engine
        case Vllm() if is_quantised(model):
            raise ConfigError(
                "a server holds the weights as they are stored, and would answer with others than are trained",
                field="rollout.engine", found="vllm with model.quantization", fix="take native, or no quantization",
            )  # fmt: skip
        case Vllm():
            follows = Followed(model=model, tokenizer=answering.tokenizer)
            return VllmEngine(config, checkpoint_of(served, answering), follows=follows)
        case Ray():
            from whet.rollout.ray import RayEngine

            follows = Followed(model=model, tokenizer=answering.tokenizer)
            return RayEngine(config, served, answering, follows=follows, dtype=dtype)
        case Http():
            raise ConfigError("cannot take weights", field="rollout.engine", found=config.type)
        case _:
            assert_never(config)


def checkpoint_of(served: Served, answering: Answering) -> Checkpoint:
    """What a server is started with. Raises ConfigError for an adapter that was trained on weights in 4 bits."""
    if served.ref.adapter is not None and trained_on(served.ref.adapter) is not None:
        raise ConfigError(
            "a server would put an adapter that was trained on weights in 4 bits on others", field="engine",
            found=f"vllm with {served.ref.adapter}", fix="put a merge stage before, or take the engine native",
        )  # fmt: skip
    try:
        configured = GenerationConfig.from_pretrained(served.ref.path).eos_token_id
    except OSError:
        configured = None
    known = [answering.end_id, answering.tokenizer.eos_token_id]
    known += configured if isinstance(configured, list) else [configured]
    return Checkpoint(
        path=served.ref.path, adapter=served.ref.adapter, folder=served.folder,
        end_ids=tuple(dict.fromkeys(token for token in known if token is not None)),
        vision=served.model.vision, trust_remote_code=served.model.trust_remote_code,
    )  # fmt: skip


@runtime_checkable
class Counting(Protocol):
    """An engine that answers elsewhere, and counts what it was asked."""

    @property
    def counts(self) -> Mapping[str, float]: ...


def server_counts(engine: Engine) -> dict[str, float]:
    """What a server was asked and counted, for the metrics of a stage; nothing for an engine of this process."""
    if not isinstance(engine, Counting):
        return {}
    return {f"server_{name}": value for name, value in engine.counts.items()}


def engine_of_another(config: EngineConfig) -> EngineConfig:
    """The engine of a model beside the one that `config` is for: a server that runs already has a model of its own."""
    attached = isinstance(config, Http) or (isinstance(config, Vllm) and config.url is not None)
    return Native() if attached else config


def native_engine(model: torch.nn.Module, answering: Answering, config: Native | None = None) -> NativeEngine:
    """Of a model that is in memory and stays as it is. In a narrow type it answers from a copy: adapters folded in,
    and on a CPU in the order its products like best. So it does of weights in 4 bits, and of fp32 ones that are not
    in training, where there is room."""
    dtype = next(model.parameters()).dtype
    room = has_room_for_copy(unwrapped(model), dtype)
    if is_quantised(model):
        copied = room
    elif dtype == torch.float32:
        copied = room and not any(parameter.requires_grad for parameter in model.parameters())
    else:
        copied = True
    copied = copied and not (answering.exact and isinstance(model, PeftModel))
    return NativeEngine(
        model, answering.tokenizer, batch_size=answering.batch_size,
        end_ids=end_ids(answering.tokenizer, unwrapped(model), answering.end_id), dtype=dtype if copied else None,
        pack_frozen=copied and room, reader=answering.reader, record=_record(config or Native(), model),
    )  # fmt: skip


def _record(config: Native, model: torch.nn.Module) -> Record | None:
    """How steps are recorded, where that is asked for and there are kernels to record."""
    return cuda_graph if config.graphs and next(model.parameters()).is_cuda else None


def load_for_generation(served: Served, precision: str) -> torch.nn.Module:
    """The model; in fp32 with its adapter folded in, which makes one matrix product a layer of three."""
    dtype = compute_dtype(precision, pick_device(served.model.device))
    loaded: torch.nn.Module = load_model(served.ref, served.model, dtype=dtype)
    if isinstance(loaded, PeftModel) and dtype == torch.float32 and not is_quantised(loaded):
        loaded = loaded.merge_and_unload()
    return loaded
