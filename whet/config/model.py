"""The model a plan trains: a checkpoint, and what of it is trainable."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from whet.config.base import Section
from whet.config.values import Device, Place, Seed


class Lora(Section):
    """Low-rank adapters (Hu et al., 2106.09685), by peft."""

    rank: int = Field(16, ge=1)
    """Rank r of the update B·A."""
    alpha: float = Field(32.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout on the adapter's input while training."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the layers that get an adapter; `all-linear` takes every linear layer except the LM head. In a vision
    tower and its projector no layer gets one unless `vision.train` is set."""


class Quantization(Section):
    """The frozen base under an adapter in 4 bits (QLoRA, Dettmers et al., 2305.14314), by the package bitsandbytes. The
    weights lie in blocks of 64, and every product takes them dequantised, in `train.precision`."""

    type: Literal["nf4", "fp4"] = "nf4"
    """The sixteen numbers a weight may be: nf4 has them at the quantiles of a normal distribution, fp4 is a float."""
    double: bool = True
    """Quantise the blocks' scales too, to 8 bits: 4.13 bits a weight in all instead of 4.5."""


class Vision(Section):
    """The eyes of a vision-language model; a model of text has none, and leaves these keys as they are."""

    train: bool = False
    """Train the vision tower and its projector too: their linear layers get the adapter's targets, or with `lora: null`
    all their weights train. Else both stay as they are, and a picture goes through the tower once and is remembered."""
    min_pixels: int | None = Field(None, ge=1)
    """Smaller pictures are scaled up to so many pixels; null keeps the limit of the checkpoint's image processor."""
    max_pixels: int | None = Field(None, ge=1)
    """Larger pictures are scaled down to so many pixels, which bounds their tokens; null keeps the same limit."""


class Build(Section):
    """A small random checkpoint, made where `model.path` has none: for first trials without a model hub."""

    files: tuple[Place, ...] = Field(min_length=1)
    """Data files whose text the tokenizer is trained on."""
    vocab_size: int = Field(2048, ge=300)
    """Size of the byte-level BPE vocabulary, at most."""
    hidden_size: int = Field(128, ge=8)
    """Width of the layers."""
    num_layers: int = Field(4, ge=1)
    """Number of transformer blocks."""
    num_heads: int = Field(4, ge=1)
    """Attention heads per block."""
    max_positions: int = Field(2048, ge=16)
    """Longest sequence in tokens."""
    seed: Seed = 42
    """Seed of the random weights."""


class Model(Section):
    """A checkpoint in the ordinary Hugging Face layout."""

    path: Place
    """Directory or hub id. Weights are read as safetensors only."""
    build: Build | None = None
    """Build a small random model at `path` where that directory does not exist yet."""
    lora: Lora | None = Lora()
    """Adapter to train; `null` trains every weight."""
    adapter: Place | None = None
    """Adapter directory to start from. Its rank and targets then replace `lora`."""
    quantization: Quantization | None = None
    """Hold the layers that do not train in 4 bits: `{type: nf4, double: true}` is QLoRA's setting, `{}` the same. Head,
    embeddings and eyes stay as they are. Null holds the weights in the precision of the computation."""
    vision: Vision = Vision()
    """Pictures."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of transformers."""
    chat_template: Place | None = None
    """Jinja file to use instead of the template that was saved with the adapter, or the checkpoint's own."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint. Off unless you trust its author."""
    device: Device = "auto"
    """Where to compute; `auto` takes the accelerator that torch finds, else the CPU."""

    @model_validator(mode="after")
    def _four_bits_do_not_train(self) -> Self:
        if self.quantization is not None and self.lora is None:
            raise ValueError("weights in 4 bits do not train: leave out `lora: null`, or leave out `quantization`")
        return self
