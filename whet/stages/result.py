"""What a stage that trains leaves: the chosen checkpoint's weights as its model, and the numbers of its summary."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from whet.config.stage import TrainStage
from whet.runs.files import read_jsonl, replacing_folder
from whet.schema.artifacts import ModelRef
from whet.stages.context import Context
from whet.train.checkpoint import Checkpoints, Position


def artefact_name(model: torch.nn.Module) -> str:
    """`adapter` where an adapter was trained, `model` where every weight was."""
    return "adapter" if isinstance(model, PeftModel) else "model"


def saved_ref(folder: Path, base: str) -> ModelRef:
    """What training wrote into a folder: an adapter of `base`, or a checkpoint of its own."""
    if (folder / "adapter_config.json").is_file():
        return ModelRef(path=base, adapter=str(folder))
    return ModelRef(path=str(folder))


def resumed(checkpoints: Checkpoints, start: ModelRef) -> ModelRef:
    """The model to train: as the latest checkpoint left it, else as the stage before did."""
    position = checkpoints.latest()
    if position is None:
        return start
    folder = checkpoints.folder(position.step)
    adapter = folder / "adapter"
    return saved_ref(adapter if adapter.is_dir() else folder / "model", start.path)


def kept_step(stage: TrainStage, position: Position) -> int:
    """The step whose checkpoint becomes the stage's model."""
    return position.best_step if stage.train.keep == "best" and position.best_step is not None else position.step


def publish(source: Path, target: Path, base: str) -> ModelRef:
    """Copy a checkpoint's weights to where the stage's model stands. `target` appears whole or not at all."""
    with replacing_folder(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    return saved_ref(target, base)


def final_metrics(context: Context, kept: int, *, since: float) -> dict[str, float]:
    """Numbers for the summary: means over the steps after epoch `since`, the first and the kept evaluation, totals."""
    rows = read_jsonl(context.paths.metrics)
    steps = [row for row in rows if "loss" in row]
    metrics = {"steps": float(steps[-1]["step"]), "kept_step": float(kept)}
    metrics |= means([row for row in steps if row["epoch"] > since])
    metrics["tokens"] = float(sum(row["tokens"] for row in steps))
    metrics["train_seconds"] = round(sum(row["step_seconds"] for row in steps), 2)
    for row in rows:
        if "loss" not in row and row["step"] in (0, kept):
            prefix = "start/" if row["step"] == 0 else ""
            metrics |= {prefix + name: value for name, value in row.items() if "/" in name}
    return metrics


def means(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Loss and rewards averaged over the samples of the steps: one step's batch says little.

    A step without good or without bad responses has no mean reward of them, and does not count for it. Rewards of
    online RL are of all completions that have one, whether a step trains on them or not.
    """
    names = dict.fromkeys(
        name for row in steps for name in row if name in ("loss", "reward") or name.startswith("rewards/")
    )
    found = {}
    for name in names:
        known = [(_weight(row, name), row[name]) for row in steps if row.get(name) is not None]
        if total := sum(num for num, _ in known):
            found[name] = sum(num * value for num, value in known) / total
    return found


def _weight(row: Mapping[str, Any], name: str) -> float:
    """Samples that a step's number is the mean of."""
    of_round = name == "reward" or name.endswith(("/mean", "/std"))  # others are of the pairs a step trains on
    if not of_round or "num_completions" not in row:
        return float(row["samples"])
    return float(row["num_completions"] * (1.0 - row["frac_reward_failed"]))
