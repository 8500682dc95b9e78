"""One side's process: `python -m benchmarks.worker JOB.json OUTCOME.json` trains once and writes what it measured."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from benchmarks.job import Job, Outcome, Trained, read_job, write_outcome
from benchmarks.machine import peak_resident_bytes
from whet.errors import UserError


def measure(job: Job) -> Outcome:
    """Import the side, train, and read the process's memory."""
    match job.side:
        case "whet" | "whet-unshared":
            import_module("whet.stages.offline")  # the pipeline would, once it trains; here it counts as an import
            from benchmarks.whet_side import train
        case "trl-tuned" | "trl-one-by-one" | "trl-padding-free" | "trl-default":
            from benchmarks.trl_side import train
    import torch

    imported = peak_resident_bytes()
    trained: Trained = train(job)
    on_cuda = job.training.device == "cuda"
    return Outcome(
        trained=trained,
        peak_bytes=torch.cuda.max_memory_allocated() if on_cuda else peak_resident_bytes(),
        imported_bytes=imported,
        threads=torch.get_num_threads(),
    )


def main(job_file: str, outcome_file: str) -> int:
    try:
        write_outcome(Path(outcome_file), measure(read_job(Path(job_file))))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
