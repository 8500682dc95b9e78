"""One rank of several runs, one after the other: `torchrun ... shard_runs.py JOBS.json`.

A job is [plan, overrides, stop, until]; with `stop`, [stage, step], every rank gives up there, as if killed.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from whet.config.load import load_plan
from whet.stages.pipeline import run_plan
from whet.train.loop import Loop

STEP = Loop._step


def run(plan: str, overrides: list[str], stop: list[Any] | None, until: str) -> None:
    def step_or_stop(loop: Loop[Any], number: int) -> dict[str, Any]:
        if [loop.title, number] == stop:
            raise KeyboardInterrupt
        return STEP(loop, number)

    Loop._step = step_or_stop  # type: ignore[method-assign]
    try:
        with suppress(KeyboardInterrupt):
            run_plan(load_plan(plan, overrides), until=until)
    finally:
        Loop._step = STEP  # type: ignore[method-assign]


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        run(*job)
