"""Every path of a run directory, named once.

    runs/NAME/
      plan.yaml  environment.json  ledger.jsonl  summary.json  report/index.html
      stages/01-sft/  config.yaml  status.json  metrics.jsonl  data.json  checkpoints/step-000200/  adapter/ | model/
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StagePaths:
    """The folder of one stage."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def status(self) -> Path:
        """State, inputs' hashes, result: see `whet.runs.ledger`."""
        return self.root / "status.json"

    @property
    def metrics(self) -> Path:
        """One line per optimiser step or evaluation."""
        return self.root / "metrics.jsonl"

    @property
    def data(self) -> Path:
        """The data ledger: rows read, kept, truncated and dropped, by reason and line."""
        return self.root / "data.json"

    @property
    def pictures(self) -> Path:
        """Some rows with pictures as they are trained on: {origin, pieces: [{text, trained, picture}]}."""
        return self.root / "pictures.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The trained adapter, where the stage trains one."""
        return self.root / "adapter"

    @property
    def model(self) -> Path:
        """The whole trained checkpoint, where the stage trains or writes every weight."""
        return self.root / "model"

    @property
    def evaluation(self) -> Path:
        """Measured values of an evaluate stage, a JSON list of `schema.artifacts.Measure`."""
        return self.root / "evaluation.json"

    @property
    def samples(self) -> Path:
        """Answers of an evaluate stage: rows {model, task, key, prompt, completion, reference, score}."""
        return self.root / "samples.jsonl"

    @property
    def completions(self) -> Path:
        """Completions of online RL to read: a line each, with its reward and advantage."""
        return self.root / "completions.jsonl"

    def file(self, name: str) -> Path:
        return self.root / name


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The folder of a run."""

    root: Path

    @property
    def plan(self) -> Path:
        return self.root / "plan.yaml"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.jsonl"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def report(self) -> Path:
        return self.root / "report" / "index.html"

    @property
    def lock(self) -> Path:
        """Locked by the process that works here: see `whet.runs.lock`."""
        return self.root / ".lock"

    @property
    def inputs(self) -> Path:
        """Data made for this run before it starts (the demo's)."""
        return self.root / "inputs"

    @property
    def stacks(self) -> Path:
        """What each rank was doing when one of them hung, in files of their own."""
        return self.root / "stacks"

    @property
    def stages(self) -> Path:
        return self.root / "stages"

    def stage(self, number: int, name: str) -> StagePaths:
        """The folder of the stage at 1-based position `number`."""
        return StagePaths(self.stages / f"{number:02d}-{name}")
