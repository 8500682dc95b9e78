"""One side's process: `python -m benchmarks.grpo_side JOB.json OUT.json` trains once and writes what it measured."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from benchmarks.grpo_job import Job, Learned, Outcome, read_job, write_outcome
from benchmarks.machine import peak_resident_bytes
from whet.errors import UserError


def measure(job: Job) -> Outcome:
    """Import the side, train, and read the process's memory."""
    match job.side:
        case "whet":
            import_module("whet.stages.online")  # the pipeline would, once it trains; here it counts as an import
            from benchmarks.grpo_whet import train
        case "trl-tuned" | "trl-default":
            from benchmarks.grpo_trl import train
    import torch

    imported = peak_resident_bytes()
    learned: Learned = train(job)
    on_cuda = job.learning.device == "cuda"
    resident = peak_resident_bytes() + learned.reward_process_bytes
    return Outcome(
        learned=learned,
        peak_bytes=torch.cuda.max_memory_allocated() if on_cuda else resident,
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
