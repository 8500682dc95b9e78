"""A training stage in numbers: everything its memory and its time depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from whet.schema.shape import ModelShape

Trains = Literal["all", "adapter", "head"]
"""Which weights train: all, an adapter's, or those of a reward head on frozen layers."""
Sharding = Literal["none", "fsdp", "zero2", "zero3"]
"""What ranks divide among themselves: nothing; weights, gradients and optimiser state (FSDP2, ZeRO-3); the last two."""

SHARDINGS: tuple[Sharding, ...] = get_args(Sharding)


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """What passes the model at once."""

    tokens: int
    targets: int
    """Tokens whose log-prob is asked for."""
    recompute: bool
    """Its activations are computed again in the backward pass: only each layer's input is kept."""
    seen: int = 0
    """Summed over all branches: the tokens of a branch and of its prompt."""
    pairs: int = 0
    """Queries times keys, summed over all segments, half-empty squares counted as the kernel computes them."""
    filling: int = 0
    """Tokens behind them that are there to make the length a round one."""

    @property
    def length(self) -> int:
        return self.tokens + self.filling


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """What the engine inside the process holds while answers are drawn."""

    rows: int
    """Answers that are drawn at the same time."""
    prompts: int
    """Their prompts, each held once."""
    prompt_tokens: int
    """Of the longest."""
    answer_tokens: int
    """Of the longest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """A frozen model beside the one that trains."""

    part: str
    """What it is, e.g. `reference model`."""
    shape: ModelShape
    on_cpu: bool
    """It is on the host although training is on a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One rank of a training stage."""

    shape: ModelShape
    on_cpu: bool
    arithmetic: Literal["fp32", "bf16", "fp16"]
    trains: Trains
    rank: int
    """Of the adapter; 0 without one."""
    dropout: bool
    """The adapter has dropout, and so keeps an input of its own for each layer."""
    weights: Literal["fp32", "bf16_master", "bf16_stochastic"]
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
    score_head: int
    """Parameters of a reward or value head; 0 without one."""
    scores: bool
    """A reward model: its head gives one number a row, and there are no log-probs."""
    trains_vision: bool
    micro_batch: MicroBatch
    """The largest one of the stage."""
    several: bool
    """A step may have more than one micro-batch: gradients are added up."""
    beside: tuple[Beside, ...]
    value_model: bool
    """PPO's value model of its own, of the policy's shape, trains as the policy does."""
    decoding: Decoding | None
    pass_tokens: int
    """Tokens of the largest pass without gradient; 0 where there is none."""
    file_bytes: int
    """Of the checkpoint's weights: they are mapped into memory while they are converted; 0 where they need not be."""
    libraries: int
    """Resident bytes of interpreter, libraries and data before a model is loaded."""
    four_bits: float = 0.0
    """Bytes a weight of frozen linear layers in 4 bits; 0 where they are not."""
    offload_activations: bool = False
    ranks: int = 1
    sharding: Sharding = "none"
    cpu_offload: bool = False
    """FSDP2 keeps weights, gradients and optimiser state in the host's memory."""

    @property
    def item(self) -> int:
        """Bytes of a number of the arithmetic."""
        return 4 if self.arithmetic == "fp32" else 2

    @property
    def sharded(self) -> bool:
        return self.sharding != "none" and self.ranks > 1

    @property
    def casts(self) -> bool:
        """Layers have fp32 weights and compute in 16 bits. Sharded weights are gathered in 16 bits already."""
        return self.trains == "all" and self.weights == "fp32" and self.item == 2 and not self.sharded

    @property
    def trainable(self) -> int:
        """Parameters that train, the value model's left out."""
        match self.trains:
            case "all":
                return self.shape.parameters - (0 if self.trains_vision else self.shape.vision) + self.score_head
            case "adapter":
                return self.shape.adapter(self.rank) + self.score_head
            case "head":
                return self.score_head
