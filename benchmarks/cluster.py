"""What a step costs on a cluster, by arithmetic: nothing is measured here, and every assumption has a name.

    python -m benchmarks.cluster                    # the tables of docs/scaling.md

With P the weights, F the FLOPs of a forward pass over the step's tokens, n the GPUs:

    training      full 3 F, LoRA 2 F (frozen weights get no gradient), + F where activations are computed again,
                  + F for a reference; over n * peak * utilisation
    replicated    all-reduce of the gradients once a step:            2 (n-1)/n * 4 bytes * trainable weights
    sharded       gather in bf16 before the forward and the backward pass of each micro-batch, and the gradients
                  scattered in fp32 after it:                         (n-1)/n * (2 * 2 P + 4 * trainable) bytes
    decoding      a token of each running sequence reads the weights and all keys and values once: bytes over an
                  engine's memory bandwidth, or 2 P FLOPs a token where that takes longer

A transfer runs at the slowest link it crosses: inside a node NVLink's, between nodes one network card a GPU (a ring has
one stream in and one out of each). How much of it hides behind the arithmetic depends on the implementation, so a
step is a range: all of it hidden, none of it hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from benchmarks.flops import PEAKS
from benchmarks.shapes import SHAPES, Shape

QWEN = {
    "4b": Shape(hidden=2560, layers=36, heads=32, kv_heads=8, head_dim=128, intermediate=9728),
    "7b": SHAPES["7b"],
    "32b": Shape(
        hidden=5120, layers=64, heads=40, kv_heads=8, head_dim=128, intermediate=27_648, vocabulary=152_064, tied=False
    ),
    "72b": Shape(
        hidden=8192, layers=80, heads=64, kv_heads=8, head_dim=128, intermediate=29_568, vocabulary=152_064, tied=False
    ),
}
"""The numbers of Qwen3-4B and Qwen2.5-7B, -32B and -72B, in a Qwen3 decoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """GPUs and links; by default H100 SXM in nodes of eight with a 400 Gbit/s card each."""

    gpus: int
    peak: float = PEAKS["H100"]
    """Dense bf16 FLOP/s of a GPU."""
    utilisation: float = 0.35
    """Share of the peak that training reaches without communication."""
    memory_bandwidth: float = 3.35e12
    """Bytes a second of a GPU's memory."""
    memory_utilisation: float = 0.6
    """Share of it that decoding reaches."""
    node: int = 8
    inside: float = 450e9
    """Bytes a second of a GPU to the others of its node, one way."""
    between: float = 50e9
    """Bytes a second of a GPU to other nodes, one way."""

    @property
    def link(self) -> float:
        return self.inside if self.gpus <= self.node else self.between


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Seconds with all communication hidden, and with none hidden."""

    hidden: float
    shown: float

    def __str__(self) -> str:
        return f"{self.hidden:.2f}" if self.shown < 1.05 * self.hidden else f"{self.hidden:.2f}–{self.shown:.2f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One optimiser step."""

    shape: Shape
    sequences: int
    """Of all GPUs."""
    length: int
    """Tokens of each."""
    trained: int
    """Tokens of each whose log-prob is asked for."""
    rank: int | None = None
    """Of a LoRA adapter; None trains all weights."""
    reference: bool = False
    recompute: bool = False
    micro_batch_tokens: int = 16_384
    """Of one GPU."""

    @property
    def trainable(self) -> int:
        return self.shape.parameters if self.rank is None else self.shape.lora_parameters(self.rank)

    @property
    def forward(self) -> float:
        return self.sequences * forward_flops(self.shape, self.length, self.trained)

    @property
    def flops(self) -> float:
        passes = (3 if self.rank is None else 2) + self.recompute + self.reference
        return passes * self.forward

    def seconds(self, on: Cluster, sharding: Literal["replicated", "sharded"]) -> Range:
        compute = self.flops / (on.gpus * on.peak * on.utilisation)
        around = (on.gpus - 1) / on.gpus
        if sharding == "replicated":
            sent = 2 * around * 4 * self.trainable
        else:
            micro_batches = math.ceil(self.sequences * self.length / on.gpus / self.micro_batch_tokens)
            gathered = 2 + self.reference
            sent = around * micro_batches * (gathered * 2 * self.shape.parameters + 4 * self.trainable)
        moving = sent / on.link
        return Range(hidden=max(compute, moving), shown=compute + moving)


def forward_flops(shape: Shape, length: int, trained: int) -> float:
    """Of one causal sequence: layers for all tokens, the head for trained ones, attention over half of the square."""
    layers = 2 * length * shape.layers * shape.layer_products
    head = 2 * trained * shape.vocabulary * shape.hidden
    return layers + head + 4 * shape.attention_width * shape.layers * length * (length + 1) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Answers to the prompts of one step of online RL."""

    shape: Shape
    sequences: int
    prompt: int
    """Tokens of a prompt, computed once for its group."""
    group: int
    answer: int
    """Tokens of an answer."""
    engine: int = 1
    """GPUs of an engine."""
    running: int = 256
    """Sequences an engine decodes at once."""

    def seconds(self, on: Cluster) -> float:
        engines = max(1, on.gpus // self.engine)
        own = math.ceil(self.sequences / engines)
        beside = min(own, self.running)
        waves = math.ceil(own / beside)
        shape, bandwidth = self.shape, self.engine * on.memory_bandwidth * on.memory_utilisation
        cached = 2 * 2 * shape.layers * shape.kv_heads * shape.head_dim * (self.prompt + self.answer / 2)
        reading = (2 * shape.parameters + beside * cached) / bandwidth
        arithmetic = 2 * shape.parameters * beside / (self.engine * on.peak * on.utilisation)
        prefill = own / self.group * forward_flops(shape, self.prompt, 1) / (self.engine * on.peak * on.utilisation)
        return waves * self.answer * max(reading, arithmetic) + prefill


def sync_seconds(shape: Shape, on: Cluster) -> float:
    """bf16 weights from the trainers to the engines, as a broadcast in pieces."""
    return 2 * shape.parameters / on.link


def utilisation(shape: Shape, tokens_per_second: float, length: int, peak: float) -> float:
    """Model FLOP utilisation of full fine-tuning of all tokens, from a published throughput of one GPU."""
    return 3 * forward_flops(shape, length, length) / length * tokens_per_second / peak


SIZES = (8, 64, 512)


def offline_lines() -> Iterator[str]:
    """SFT of 1,024 sequences of 4,096 tokens a step; a way that does not fit into 80 GB is left out."""
    yield f"| model | trained | sharding | {' | '.join(f'{gpus} GPUs' for gpus in SIZES)} |"
    yield "|---|---|---|---|---|---|"
    for name, shape in QWEN.items():
        for rank in (None, 16):
            training = Training(shape=shape, sequences=1024, length=4096, trained=2048, rank=rank, recompute=True)
            for sharding in ("replicated", "sharded"):
                if sharding == "replicated" and held_bytes(training) > 60e9:
                    continue
                seconds = " | ".join(str(training.seconds(Cluster(gpus=gpus), sharding)) for gpus in SIZES)
                kind = "all" if rank is None else f"LoRA {rank}"
                yield f"| {name} | {kind} | `{'none' if sharding == 'replicated' else 'fsdp'}` | {seconds} |"


def held_bytes(training: Training) -> float:
    """On one GPU that holds all: bf16 weights, and fp32 weights, gradients and two averages of what trains."""
    return 2 * training.shape.parameters + 16 * training.trainable


def online_lines() -> Iterator[str]:
    """GRPO: 512 prompts of 512 tokens, 16 answers of 2,048; in one turn, and apart with a round drawn ahead."""
    yield "| model | GPUs | generate s | train s | weights s | in turn s | apart, a round ahead s | engines' share |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, engine in (("4b", 1), ("7b", 1), ("32b", 4), ("72b", 8)):
        shape = QWEN[name]
        answers = Generation(shape=shape, sequences=8192, prompt=512, group=16, answer=2048, engine=engine)
        training = Training(
            shape=shape, sequences=8192, length=2048 + 512 // 16, trained=2048, reference=True, recompute=True,
        )  # fmt: skip
        for gpus in (16, 64, 512):
            moved = sync_seconds(shape, Cluster(gpus=gpus))
            drawn = answers.seconds(Cluster(gpus=gpus))
            trained = training.seconds(Cluster(gpus=gpus), "sharded").shown
            ahead, engines = best_split(answers, training, gpus)
            yield (
                f"| {name} | {gpus} | {drawn:.0f} | {trained:.0f} | {moved:.1f} | {drawn + trained + moved:.0f} |"
                f" {ahead + moved:.0f} | {engines / gpus:.0%} |"
            )


def best_split(answers: Generation, training: Training, gpus: int) -> tuple[float, int]:
    """The shortest step where some GPUs generate while the others train on the round before; and how many generate."""
    splits = range(answers.engine, gpus, answers.engine)
    return min(
        (max(answers.seconds(Cluster(gpus=g)), training.seconds(Cluster(gpus=gpus - g), "sharded").shown), g)
        for g in splits
    )


def published_lines() -> Iterator[str]:
    """The same formula on throughputs that prime-rl 0.8 publishes with its own utilisation."""
    yield "| model | tokens a row | tokens/s a GPU, published | utilisation, published | by the formula above |"
    yield "|---|---|---|---|---|"
    for name, shape, length, speed, stated in (
        ("Qwen3-0.6B", SHAPES["0.6b"], 8192, 26_000.0, 0.168),
        ("Qwen3-0.6B", SHAPES["0.6b"], 16_384, 25_500.0, 0.237),
        ("Qwen3-4B", QWEN["4b"], 16_384, 53_100.0 / 8, 0.284),
    ):
        ours = utilisation(shape, speed, length, PEAKS["H100"])
        yield f"| {name} | {length:,} | {speed:,.0f} | {stated:.1%} | {ours:.1%} |"


def main() -> None:
    for lines in (offline_lines(), online_lines(), published_lines()):
        print("\n".join(lines), end="\n\n")


if __name__ == "__main__":
    main()
