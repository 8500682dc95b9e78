"""What one side of `generate` is told, and what it answers: JSON files between processes. Standard library only, since
a peer may have an interpreter of its own."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Side = Literal["whet", "transformers", "vllm"]
Precision = Literal["bf16", "fp32"]
PRECISIONS: dict[Precision, str] = {"bf16": "bfloat16", "fp32": "float32"}
"""As torch and vLLM call them."""
SIDES: tuple[Side, ...] = ("whet", "transformers", "vllm")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What all sides have in common: temperature 1, nothing truncated, no end before `new_tokens`."""

    checkpoint: str
    device: Literal["cpu", "cuda"]
    precision: Precision
    """Of weights and products."""
    prompts: list[list[int]]
    samples: int
    """Answers to each prompt."""
    new_tokens: int
    """Tokens of each answer, no fewer and no more."""
    repeats: int
    """Timed runs; one that is not timed goes before them."""

    @property
    def tokens(self) -> int:
        """Tokens that one run generates."""
        return len(self.prompts) * self.samples * self.new_tokens


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What a side measured, and what its process held."""

    seconds: list[float]
    """Of each timed run, prompts included."""
    lengths: list[int]
    """Tokens of every answer of the last run."""
    load_seconds: float
    """From the checkpoint to readiness, without imports."""
    peak_bytes: int
    """Most memory of the process and those it started, added up; on CUDA what torch had allocated."""
    imported_bytes: int
    """Of that, what the libraries took before there was a model."""
    threads: int
    version: str
    """Of the peer; empty for whet."""


def write_job(path: Path, side: Side, generation: Generation) -> None:
    path.write_text(json.dumps({"side": side, "generation": asdict(generation)}), encoding="utf-8")


def read_job(path: Path) -> tuple[Side, Generation]:
    value = json.loads(path.read_text(encoding="utf-8"))
    return value["side"], Generation(**value["generation"])


def write_generated(path: Path, generated: Generated) -> None:
    path.write_text(json.dumps(asdict(generated)), encoding="utf-8")


def read_generated(path: Path) -> Generated:
    return Generated(**json.loads(path.read_text(encoding="utf-8")))
