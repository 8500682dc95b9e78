"""A few real steps of each training stage, in a process and a folder of their own: their time, and what they held."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from whet.config.load import dump_plan
from whet.config.plan import Plan
from whet.config.stage import OnlinePolicyStage, TrainStage
from whet.errors import RunError
from whet.estimate.result import Probed, StageEstimate

LEAST_ROUNDS = 2
"""The first step makes the optimiser's state and compiles kernels: it is not counted, nor is the rest of its round."""


def with_probe(estimates: Sequence[StageEstimate], plan: Plan, *, steps: int) -> tuple[StageEstimate, ...]:
    """The estimates with what their stages took. A stage whose data an earlier one has yet to write stays as it is.

    Raises RunError where a stage does not run.
    """
    stages = {stage.name: stage for stage in plan.stages if isinstance(stage, TrainStage)}
    return tuple(
        estimate if estimate.work is None else
        replace(estimate, probed=_run(plan, stages[estimate.name], steps))
        for estimate in estimates
    )  # fmt: skip


def _run(plan: Plan, stage: TrainStage, steps: int) -> Probed:
    """`whet run` of this stage alone, from the plan's own model, without evaluation, for so many steps in whole rounds:
    the first step of a round has all of its generation."""
    in_round = steps_of_round(stage)
    most = in_round * max(LEAST_ROUNDS, math.ceil(steps / in_round))
    train = stage.train.model_copy(update={"max_steps": most, "best_metric": None})
    data = stage.data.model_copy(update={"eval_files": (), "eval_fraction": 0.0})
    update: dict[str, Any] = {"train": train, "data": data, "start": "base"}
    if "watch" in type(stage).model_fields:
        update["watch"] = ()
    with tempfile.TemporaryDirectory(prefix="whet-probe-") as folder:
        run = Path(folder) / "run"
        alone = plan.model_copy(update={"run": str(run), "stages": (stage.model_copy(update=update),), "loops": ()})
        file = Path(folder) / "plan.yaml"
        file.write_text(dump_plan(alone), encoding="utf-8")
        done = subprocess.run([sys.executable, "-m", "whet", "run", str(file)], capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
            raise RunError(f"the probe of stage {stage.name!r} failed", found=said, fix="leave out --probe")
        (metrics,) = run.glob("stages/*/metrics.jsonl")
        lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return probed([line for line in lines if "step_seconds" in line], first=in_round)


def steps_of_round(stage: TrainStage) -> int:
    """Optimiser steps on what is generated at once; 1 where nothing is."""
    return stage.objective.minibatches * stage.objective.passes if isinstance(stage, OnlinePolicyStage) else 1


def probed(lines: Sequence[Mapping[str, Any]], *, first: int = 1) -> Probed:
    """From the log's lines of steps, the first of which, a round's, are not counted."""
    counted = lines[first:]
    seconds = sum(line["step_seconds"] for line in counted)
    return Probed(
        steps=len(counted), tokens_per_second=sum(line["tokens"] for line in counted) / seconds,
        peak=max(line["peak_memory_bytes"] for line in lines),
    )  # fmt: skip
