"""whet's side: an ordinary plan, run as a user runs it; seconds, loss and tokens are read from its metrics.jsonl.

Without prefix sharing (`whet-unshared`) the same plan runs with one function replaced, that which packs the responses.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import whet.data.batch
from benchmarks.job import Job, Trained
from whet.config.load import load_plan
from whet.data.pack import pack_rows
from whet.data.pictures import PictureReader
from whet.data.rendered import Rendered, RenderedGroup
from whet.runs.files import read_jsonl
from whet.runs.layout import RunPaths
from whet.schema.packed import Packed
from whet.stages.pipeline import run_plan


def train(job: Job) -> Trained:
    """Train once."""
    began = time.perf_counter()
    if job.side == "whet-unshared":
        whet.data.batch.pack_groups = pack_apart  # type: ignore[attr-defined]
    run_plan(load_plan(plan(job)))
    total = time.perf_counter() - began
    paths = RunPaths(Path(job.folder)).stage(1, job.training.task)
    steps = [row for row in read_jsonl(paths.metrics) if "step_seconds" in row]
    return Trained(
        step_seconds=[row["step_seconds"] for row in steps],
        losses=[row["loss"] for row in steps],
        first_step={name: value for name, value in steps[0].items() if isinstance(value, int | float)},
        total_seconds=total,
    )


def pack_apart(groups: Sequence[RenderedGroup], reader: PictureReader | None = None) -> Packed:
    """Every response behind a prompt of its own, as rows end to end; the response tokens are targets as before."""
    rows = [
        Rendered(
            ids=[*group.prompt_ids, *response],
            weights=[0.0] * len(group.prompt_ids) + [1.0] * len(response),
            origin=group.origin,
            pictures=group.pictures,
        )
        for group in groups
        for response in group.response_ids
    ]
    packed, _ = pack_rows(rows, reader)
    return packed


def plan(job: Job) -> dict[str, Any]:
    """The plan of one training. What is not named here is left at whet's default."""
    training = job.training
    return {
        "run": job.folder,
        "model": {
            "path": training.model,
            "device": training.device,
            "lora": {"rank": training.rank, "alpha": training.alpha},
        },
        "stages": [
            {
                "kind": training.task,
                "data": {"files": list(training.data), "max_length": training.max_length, "on_bad_row": "drop"},
                "train": {
                    "batch_size": training.batch_size,
                    "max_steps": training.steps,
                    "learning_rate": training.learning_rate,
                    "schedule": "constant",
                    "warmup_steps": 0,
                    "precision": training.precision,
                    "seed": training.seed,
                },
            }
        ],
    }
