"""An engine section -> the engine of a model that does not train.

    engine = open_engine(config.engine, served, Answering(tokenizer=tokenizer, end_id=renderer.end_id, batch_size=32))

The model is loaded into this process only where the engine runs here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from whet.config.engine import Engine as EngineConfig
from whet.config.engine import Http, Native, Vllm
from whet.config.model import Model
from whet.errors import ConfigError
from whet.models.backbone import unwrapped
from whet.models.load import compute_dtype, end_ids, load_model, pick_device
from whet.models.memory import has_room_for_copy
from whet.rollout.engine import Engine
from whet.rollout.native import NativeEngine
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


def open_engine(config: EngineConfig, served: Served, answering: Answering) -> Engine:
    """Whoever opens an engine closes it. Raises ModelError where the model cannot be loaded."""
    match config:
        case Native():
            return native_engine(load_for_generation(served, config.precision), answering)
        case Http() | Vllm():
            raise ConfigError("is not there yet", field="rollout.engine", found=config.type)
        case _:
            assert_never(config)


def engine_of_another(config: EngineConfig) -> EngineConfig:
    """The engine of a model beside the one that `config` is for. A server of type http has a model of its own."""
    return Native() if isinstance(config, Http) else config


def native_engine(model: torch.nn.Module, answering: Answering) -> NativeEngine:
    """Of a model that is in memory and stays as it is. In a narrow type it answers from a copy: adapters folded in,
    and on a CPU in the order its products like best."""
    dtype = next(model.parameters()).dtype
    copied = dtype != torch.float32 and not (answering.exact and isinstance(model, PeftModel))
    return NativeEngine(
        model, answering.tokenizer, batch_size=answering.batch_size,
        end_ids=end_ids(answering.tokenizer, unwrapped(model), answering.end_id), dtype=dtype if copied else None,
        pack_frozen=copied and has_room_for_copy(unwrapped(model), dtype),
    )  # fmt: skip


def load_for_generation(served: Served, precision: str) -> torch.nn.Module:
    """The model; in fp32 with its adapter folded in, which makes one matrix product a layer of three."""
    dtype = compute_dtype(precision, pick_device(served.model.device))
    loaded: torch.nn.Module = load_model(served.ref, served.model, dtype=dtype)
    if isinstance(loaded, PeftModel) and dtype == torch.float32:
        loaded = loaded.merge_and_unload()
    return loaded
