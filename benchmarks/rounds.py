"""Runs the sides in turn, each training in a fresh process, and checks that all did the same work.

    round 1   whet  trl-tuned  trl-default
    round 2   whet  trl-tuned  trl-default ...

So a machine that is slower for a minute is slower for everybody, and the spread over the rounds shows it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.flops import row_tokens, shared_tokens
from benchmarks.job import Job, Outcome, Side, Training, read_outcome, write_job
from whet.errors import RunError

ROOT = Path(__file__).resolve().parents[1]
"""The checkout: the processes import both packages from there."""


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """The temporary folder of one comparison."""

    root: Path
    size: str
    training: Training
    log: Path
    """What the sides print."""

    def prepare(self) -> None:
        """Checkpoint and rows, made in a process of their own."""
        job = self.root / "prepare.json"
        write_job(job, Job(side="whet", training=self.training, folder=str(self.root)))
        self._call("benchmarks.prepare", str(job), self.size)

    def train(self, side: Side, round_number: int) -> Outcome:
        """One training of one side in a fresh process. Raises RunError where it fails."""
        name = f"{round_number:02d}-{side}"
        folder, job, outcome = self.root / name, self.root / f"{name}.json", self.root / f"{name}.out.json"
        shutil.rmtree(folder, ignore_errors=True)  # what a failed comparison left
        outcome.unlink(missing_ok=True)
        write_job(job, Job(side=side, training=self.training, folder=str(folder)))
        self._call("benchmarks.worker", str(job), str(outcome))
        shutil.rmtree(folder, ignore_errors=True)
        return read_outcome(outcome)

    def _call(self, module: str, *arguments: str) -> None:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with self.log.open("ab") as log:
            begin = log.tell()
            command = [sys.executable, "-m", module, *arguments]
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False)
        if done.returncode:
            written = self.log.read_bytes()[begin:].decode("utf-8", errors="replace").strip()
            last = written.splitlines()[-1].removeprefix("error: ") if written else f"exit code {done.returncode}"
            raise RunError(last, file=str(self.log), fix="the file has all that it printed")


def run_rounds(
    place: Workplace, sides: Sequence[Side], num_rounds: int, show: Callable[[int, Side, Outcome], None]
) -> dict[Side, list[Outcome]]:
    """Every side once a round, in the same order; one outcome a round each."""
    outcomes: dict[Side, list[Outcome]] = {side: [] for side in sides}
    for number in range(1, num_rounds + 1):
        for side in sides:
            outcome = place.train(side, number)
            if len(outcome.trained.step_seconds) != place.training.steps:
                raise RunError(f"{side} took {len(outcome.trained.step_seconds)} steps of {place.training.steps}")
            outcomes[side].append(outcome)
            show(number, side, outcome)
        check_same_work({side: rounds[-1] for side, rounds in outcomes.items()}, place.training)
    return outcomes


def check_same_work(outcomes: Mapping[Side, Outcome], training: Training) -> None:
    """Raise RunError unless all sides logged the same of their first step: same records, same weights, same loss."""
    rows = json.loads(Path(training.rows).read_text(encoding="utf-8"))[: training.batch_size]
    tokens = {sum(count(training.task, row) for row in rows) for count in (row_tokens, shared_tokens)}
    (first_side, first), *others = outcomes.items()
    for side, outcome in outcomes.items():
        found = outcome.trained.first_step["tokens"]
        if found not in tokens:
            raise RunError(f"{side} did not train on the prepared rows", field="tokens", found=f"{found:.0f}, {tokens}")
    for side, outcome in others:
        for name, tolerance in tolerances(training).items():
            ours, theirs = first.trained.first_step[name], outcome.trained.first_step[name]
            if not math.isclose(ours, theirs, rel_tol=tolerance):
                raise RunError(
                    f"{first_side} and {side} did not do the same work",
                    field=name,
                    found=f"{ours:.5f} and {theirs:.5f}",
                    fix="their figures cannot be compared",
                )


def tolerances(training: Training) -> dict[str, float]:
    """Relative differences allowed between what two sides log of their first step, by name.

    bf16 has 8 bits. The first loss of dpo is log 2 whatever the records, so their log-probs are compared too. The heads
    of two reward models start from different random numbers: their losses lie on either side of log 2.
    """
    match training.task:
        case "sft":
            return {"loss": 1e-2}
        case "dpo":
            return {"loss": 1e-2, "logps/chosen": 1e-2, "logps/rejected": 1e-2}
        case "reward":
            return {"loss": 0.5}
