"""What one side of a comparison is told, and what it answers: JSON files between processes.

Each side trains in a process of its own, which reads a `Job`, trains once, and writes an `Outcome`. The process that
compares them loads no torch, so that no side starts in a machine whose memory is taken.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Task = Literal["sft", "dpo", "reward"]
TASKS: tuple[Task, ...] = ("sft", "dpo", "reward")
Side = Literal["whet", "whet-unshared", "trl-tuned", "trl-one-by-one", "trl-padding-free", "trl-default"]
"""Who trains, and how set up; the peers' settings are in their own modules."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What all sides have in common."""

    task: Task
    model: str
    """Checkpoint directory."""
    data: tuple[str, ...]
    """Files whet reads."""
    rows: str
    """The same rows as token ids, in the order of the steps: see `benchmarks.prepare`."""
    device: Literal["cpu", "cuda"]
    precision: Literal["bf16", "fp32"]
    batch_size: int
    """Records a step: rows for sft, pairs for dpo and reward."""
    steps: int
    """Steps in all, warm-up included."""
    max_length: int
    pictures: bool
    """Prompts hold pictures: see `benchmarks.vision`."""
    learning_rate: float
    rank: int = 16
    alpha: int = 32
    seed: int = 42


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training of one side."""

    side: Side
    training: Training
    folder: str
    """Empty folder to train in."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a side measured of its training. Lists have one entry a step."""

    step_seconds: list[float]
    """From fetching a step's records, collation included, to the end of the optimiser's step."""
    losses: list[float]
    first_step: dict[str, float]
    """What the side logs of its first step, to see that all saw the same records."""
    total_seconds: float
    """Loading, tokenising, training and saving, without imports."""
    settings: dict[str, str] = field(default_factory=dict)
    """How this side was set up, where its sort has several ways."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A training, and what its process held."""

    trained: Trained
    peak_bytes: int
    """Most memory the process held: resident on a CPU, allocated by torch on CUDA."""
    imported_bytes: int
    """Resident memory once everything was imported, before there was any model."""
    threads: int
    """Threads torch computed with."""


def write_job(path: Path, job: Job) -> None:
    path.write_text(json.dumps(asdict(job), indent=1), encoding="utf-8")


def read_job(path: Path) -> Job:
    value = json.loads(path.read_text(encoding="utf-8"))
    training = value.pop("training")
    return Job(training=Training(**training | {"data": tuple(training["data"])}), **value)


def write_outcome(path: Path, outcome: Outcome) -> None:
    path.write_text(json.dumps(asdict(outcome)), encoding="utf-8")


def read_outcome(path: Path) -> Outcome:
    value = json.loads(path.read_text(encoding="utf-8"))
    return Outcome(trained=Trained(**value.pop("trained")), **value)
