"""Taking hold of a run directory: one plan's, one process's, and nothing in it overwritten."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from whet.config.load import dump_plan
from whet.config.plan import Plan
from whet.errors import RunError
from whet.runs.environment import describe_environment
from whet.runs.files import read_json, read_yaml, reading, sweep, write_json, write_text, writing
from whet.runs.layout import RunPaths
from whet.runs.ledger import first_difference


def claim(paths: RunPaths, plan: Plan, *, fresh: bool) -> None:
    """Make the run directory this plan's. Raises RunError where it is another plan's, or holds something else: then
    nothing was moved."""
    text = dump_plan(plan)
    if not is_ours(paths) and any(is_foreign(path) for path in paths.root.iterdir()):
        raise RunError("directory is in use, but not by a run", file=str(paths.root), fix="choose another `run`")
    sweep(paths.root, deep=False)
    if fresh:
        # The plan goes last: a kill before that leaves a directory that is still this run's.
        for part in (paths.stages, paths.summary, paths.environment, paths.report.parent, paths.plan):
            if part.exists():
                archive(paths, part)
    if paths.plan.exists() and holds_work(paths):
        difference = first_difference(_without_launch(read_yaml(paths.plan)), _without_launch(yaml.safe_load(text)))
        if difference:
            raise RunError(
                "this run directory belongs to another plan", file=str(paths.root), found=f"{difference}",
                fix="choose another `run`, or pass --fresh to move its content to archive/",
            )  # fmt: skip
    write_text(paths.plan, text)
    if not paths.environment.exists():
        write_json(paths.environment, describe_environment(sys.argv))


def _without_launch(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What decides over a plan's results: where it runs does not."""
    return {key: value for key, value in plan.items() if key != "launch"}


def holds_work(paths: RunPaths) -> bool:
    """Whether anything was computed here. A plan refused for its data may be corrected and run in the same place."""
    kept = ("checkpoints", "rollouts.jsonl", "judgements.jsonl", "rank-*/rollouts.jsonl", "made", "replies.jsonl")
    if any(any(paths.stages.glob(f"*/{name}")) for name in kept):
        return True
    return any(_is_done(path) for path in paths.stages.glob("*/status.json"))


def _is_done(status: Path) -> bool:
    with reading(status):
        return bool(read_json(status)["status"] == "done")


def is_ours(paths: RunPaths) -> bool:
    """Whether a run has worked here: its plan is there, or went to the archive. What others put beside it is theirs,
    and no obstacle."""
    return paths.plan.exists() or any((paths.root / "archive").glob("*-plan.yaml"))


def is_foreign(path: Path) -> bool:
    """Whether something in a directory without a plan is not ours. Hidden: the lock, and what a kill left unnamed."""
    return not path.name.startswith(".") and path.name not in ("archive", "inputs", "ledger.jsonl", "stacks")


def archive(run: RunPaths, path: Path) -> Path:
    """Move something an earlier run made out of the way; nothing is deleted."""
    folder = run.root / "archive"
    numbers = [int(name) for name in (p.name.partition("-")[0] for p in folder.glob("*-*")) if name.isdigit()]
    number = 1 + max(numbers, default=0)
    target = folder / f"{number:03d}-{path.name}"
    with writing(target):
        folder.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    return target


@contextmanager
def only_one_process(paths: RunPaths) -> Iterator[None]:
    """Hold the run directory; a second process is refused instead of writing into the same files."""
    with writing(paths.root):
        paths.root.mkdir(parents=True, exist_ok=True)
        handle = (paths.root / ".lock").open("w")
    try:
        import fcntl
    except ImportError:  # Windows has no flock; two processes in one run directory are then the user's care.
        with handle:
            yield
        return
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                "another process is working in this run directory",
                file=str(paths.root),
                fix="wait for it, or choose another `run`",
            ) from error
        yield
