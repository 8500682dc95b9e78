"""What one side of `grpo` is told, and what it answers: JSON files between processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Side = Literal["whet", "trl-tuned", "trl-default"]
SIDES: tuple[Side, ...] = ("whet", "trl-tuned", "trl-default")
REWARD = str(Path(__file__).with_name("grpo_reward.py"))
"""The file of the function that both sides call."""


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What all sides have in common: GRPO with one optimiser step a round, temperature 1, nothing truncated, no end
    before `new_tokens`."""

    checkpoint: str
    data: str
    """File of prompts, which whet reads."""
    ordered: str
    """JSON list of the same prompts in the order in which whet visits them; with pictures as `vision.as_asked` has
    them."""
    device: Literal["cpu", "cuda"]
    pictures: bool
    """The prompts hold pictures: see `benchmarks.vision`."""
    prompts: int
    """Of a step; no prompt comes twice."""
    samples: int
    """Answers to each prompt."""
    new_tokens: int
    """Tokens of each answer, no fewer and no more."""
    steps: int
    """Steps in all, warm-up included."""
    kl_weight: float
    learning_rate: float = 1e-5
    rank: int = 16
    alpha: int = 32
    seed: int = 42

    @property
    def step_tokens(self) -> int:
        """Tokens that one step generates."""
        return self.prompts * self.samples * self.new_tokens


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training of one side."""

    side: Side
    learning: Learning
    folder: str
    """Empty folder to train in."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step, from asking for its completions to the end of the optimiser's step."""

    seconds: float
    generate_seconds: float
    score_seconds: float
    """The reward function's calls."""
    reward: float
    """Mean over the answers."""
    kl: float
    """To the reference, as the side estimates it."""
    prompt_ids: list[list[int]]
    lengths: list[int]
    """Tokens of every answer."""

    @property
    def train_seconds(self) -> float:
        """All the rest: the reference's pass, forward, backward and optimiser, and bringing the engine up to date."""
        return self.seconds - self.generate_seconds - self.score_seconds


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a side measured of its training."""

    steps: list[Step]
    kl_weight: float
    """As the side's own objective has it."""
    reward_process_bytes: int = 0
    """Memory of the process that calls the reward function, where that is one of its own."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A training, and what its process held."""

    learned: Learned
    peak_bytes: int
    """Most memory of the process and of those it started; on CUDA what torch had allocated."""
    imported_bytes: int
    """Of that, what the libraries took before there was a model."""
    threads: int


def write_job(path: Path, job: Job) -> None:
    path.write_text(json.dumps(asdict(job)), encoding="utf-8")


def read_job(path: Path) -> Job:
    value = json.loads(path.read_text(encoding="utf-8"))
    return Job(learning=Learning(**value.pop("learning")), **value)


def write_outcome(path: Path, outcome: Outcome) -> None:
    path.write_text(json.dumps(asdict(outcome)), encoding="utf-8")


def read_outcome(path: Path) -> Outcome:
    value = json.loads(path.read_text(encoding="utf-8"))
    learned = value.pop("learned")
    steps = [Step(**step) for step in learned.pop("steps")]
    return Outcome(learned=Learned(steps=steps, **learned), **value)
