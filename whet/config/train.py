"""The optimiser loop, the same for every stage that trains."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StrictBool, model_validator

from whet.config.base import Section
from whet.config.values import Seed

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class Train(Section):
    """One loop for every stage that trains."""

    batch_size: int = Field(8, ge=1)
    """Records per optimiser step, over all ranks together: the same plan takes the same steps wherever it runs."""
    micro_batch_tokens: int | None = Field(None, ge=1)
    """Tokens per forward pass: records are packed up to it, and a longer one recomputes its activations in the
    backward pass. null fits it to the model and the device. The gradient does not depend on it."""
    epochs: int = Field(1, ge=1)
    """Passes over the data, reshuffled each time."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimiser steps, whatever `epochs` says."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak of the schedule (AdamW)."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    """AdamW; with its running averages in 8 bits, or paged out of a full GPU, both by the package bitsandbytes."""
    weights: Literal["fp32", "bf16_master", "bf16_stochastic"] = "fp32"
    """How the weights that train are held. bf16_master: bf16 in the model, fp32 in the optimiser, so that no update is
    lost. bf16_stochastic: bf16 only, each update rounded at random, right on average."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    warmup_ratio: float = Field(0.03, ge=0.0, le=1.0)
    """Share of the steps over which the learning rate rises from zero."""
    warmup_steps: int | None = Field(None, ge=0)
    """Warm-up in steps; wins over `warmup_ratio`."""
    min_lr_ratio: float = Field(0.0, ge=0.0, le=1.0)
    """Learning rate at the end, as a share of its peak (cosine and linear)."""
    weight_decay: float = Field(0.0, ge=0.0)
    """AdamW's decoupled weight decay."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW's running averages."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to AdamW's denominator."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Clip the gradient to this norm; null leaves it."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of the forward pass. `auto` is bf16 on a GPU that has it, and where `weights` are bf16; else fp32, on
    every CPU too. On a CPU without instructions for it bf16 is several to a hundred times slower: that is warned of."""
    gradient_checkpointing: StrictBool | Annotated[int, Field(ge=2)] | Literal["selective"] = False
    """Recompute activations in the backward pass, with the same gradients: `true` those of all layers, for about a
    third more time; a number k those of every k-th layer; `selective` what lies between the matrix products and
    attention, whose results are kept."""
    activation_offload: bool = False
    """Hold what the layers keep for the backward pass in the host's memory, for the time of copying it there and back.
    Also with `gradient_checkpointing`, which leaves little to copy. On a CPU it lies there already."""
    eval_every: int | None = Field(None, ge=1)
    """Evaluate every so many steps; null evaluates at the start, after each epoch and at the end."""
    save_every: int | None = Field(None, ge=1)
    """Checkpoint every so many steps; null saves after each epoch and at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the latest checkpoints stay; the best one always does."""
    best_metric: str | None = None
    """Metric that names the best checkpoint, e.g. `eval/loss` or `watch/exact/accuracy`; null with
    evaluation data is `eval/loss`."""
    best_mode: Literal["min", "max"] | None = None
    """Which end of the metric is best; null decides by its name (`loss`, `perplexity`, `ece`, `brier`, and shares that
    `failed` or were `clipped`: min, else max)."""
    keep: Literal["best", "last"] = "best"
    """Which checkpoint becomes the stage's result. `best` is `last` where nothing is measured."""
    log_every: int = Field(1, ge=1)
    """Console progress every so many steps; metrics.jsonl always has every step."""
    seed: Seed = 42
    """Data order, dropout and adapter initialisation."""

    @model_validator(mode="after")
    def _bf16_weights_compute_in_bf16(self) -> Self:
        if self.weights != "fp32" and self.precision not in ("auto", "bf16"):
            raise ValueError(
                f"weights {self.weights} compute in bf16, not in precision {self.precision}: leave that at auto"
            )
        return self

    @property
    def arithmetic(self) -> Literal["auto", "bf16", "fp16", "fp32"]:
        """`precision`, `auto` decided where the weights decide it."""
        return "bf16" if self.weights != "fp32" else self.precision


class SftTrain(Train):
    """The loop of supervised fine-tuning."""

    neftune_alpha: float = Field(0.0, ge=0.0)
    """Noise on the embeddings while training (NEFTune, Jain et al., 2310.05914, who take 5 to 15)."""


class DpoTrain(Train):
    """The loop with the learning rate that preference training wants (LoRA; the paper's 1e-6 is for all weights)."""

    learning_rate: float = Field(5e-6, gt=0)
    """Peak of the schedule (AdamW)."""
    warmup_ratio: float = Field(0.1, ge=0.0, le=1.0)
    """Share of the steps over which the learning rate rises from zero."""


class OnlineTrain(Train):
    """The loop of online RL, with the learning rate for LoRA; for all weights 1e-6 is usual."""

    batch_size: int = Field(8, ge=1)
    """Prompts per round of rollouts, over all ranks; a round is trained on in one optimiser step or several."""
    learning_rate: float = Field(1e-5, gt=0)
    """Peak of the schedule (AdamW)."""
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    """Learning rate after the warm-up."""
    warmup_ratio: float = Field(0.0, ge=0.0, le=1.0)
    """Share of the steps over which the learning rate rises from zero."""
