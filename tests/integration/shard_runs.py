"""One rank of several runs, one after the other: `torchrun ... shard_runs.py JOBS.json`.

A job is [plan, overrides, stop, until, in_turn]; with `stop`, [stage, step], every rank gives up there, as if killed.
With `in_turn` there is no room for a whole model on each rank, and they load one after the other.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from whet.config.load import load_plan
from whet.stages import parts
from whet.stages.pipeline import run_plan
from whet.train.loop import Loop

STEP, ROOM = Loop._step, parts.ROOM


def run(plan: str, overrides: list[str], stop: list[Any] | None, until: str, in_turn: bool = False) -> None:
    def step_or_stop(loop: Loop[Any], number: int) -> dict[str, Any]:
        if [loop.title, number] == stop:
            raise KeyboardInterrupt
        return STEP(loop, number)

    Loop._step, parts.ROOM = step_or_stop, 0.0 if in_turn else ROOM  # type: ignore[method-assign]
    try:
        with suppress(KeyboardInterrupt):
            run_plan(load_plan(plan, overrides), until=until)
    finally:
        Loop._step, parts.ROOM = STEP, ROOM  # type: ignore[method-assign]


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        run(*job)
