"""Runs a plan as one of several ranks, as `whet run` does, but a judgement becomes a score made of its tokens.

Random weights never write a score.
"""

from __future__ import annotations

import sys
from pathlib import Path

import whet.rollout.build
from tests.stages.doomed import Judging
from whet.cli import main

if __name__ == "__main__":
    whet.rollout.build.NativeEngine = Judging  # type: ignore[misc]
    main(["run", str(Path(sys.argv[1]))])
