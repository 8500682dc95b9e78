"""Taking hold of a run directory: one plan's, and nothing in it overwritten that is not the run's."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from whet.config.load import dump_plan
from whet.config.plan import Plan
from whet.config.source import to_yaml
from whet.errors import RunError
from whet.runs.environment import describe_environment
from whet.runs.files import read_json, read_yaml, reading, sweep, write_json, write_text, writing
from whet.runs.layout import RunPaths
from whet.runs.ledger import first_difference, record_event


def claim(paths: RunPaths, plan: Plan, *, fresh: bool) -> None:
    """Make the run directory this plan's. Raises RunError where it is another plan's, or holds something else: then
    nothing was moved."""
    text = dump_plan(plan)
    theirs = paths.plan.exists() and not is_written_by_whet(paths.plan)
    if not is_ours(paths) and not (paths.plan.exists() and paths.plan.read_bytes() == text.encode()):
        foreign = sorted(path.name for path in paths.root.iterdir() if is_foreign(path))
        if foreign:
            raise RunError(
                "directory is in use, but not by a run", file=str(paths.root), found=foreign[0],
                fix="choose another `run`",
            )  # fmt: skip
    if fresh and theirs:
        raise _not_whets(paths, "--fresh would move it")
    sweep(paths.root, deep=False)
    if fresh:
        _archive_all(paths)
    if paths.plan.exists() and (theirs or holds_work(paths)):
        difference = first_difference(_without_launch(read_yaml(paths.plan)), _without_launch(yaml.safe_load(text)))
        if difference and holds_work(paths):
            raise RunError(
                "this run directory belongs to another plan", file=str(paths.root), found=f"{difference}",
                fix="choose another `run`, or pass --fresh to move its content to archive/",
            )  # fmt: skip
        if difference:
            raise _not_whets(paths, "it would be overwritten")
    _archive_leftovers(paths, plan)
    # The plan goes last: a kill before that leaves a directory that says whose it is.
    if not paths.environment.exists():
        write_json(paths.environment, describe_environment(sys.argv))
    if not theirs:
        write_text(paths.plan, text)


def _not_whets(paths: RunPaths, what: str) -> RunError:
    return RunError(f"was not written by whet, and {what}", file=str(paths.plan), fix="choose another `run`")


def _archive_all(paths: RunPaths) -> None:
    """Move what the run made out of the way. The environment goes last: a kill before that, and the archive after it,
    leave a directory that is still this run's."""
    report = [paths.report.parent] if paths.report.exists() else []  # without whet's page the folder is theirs
    for part in (paths.stages, paths.summary, *report, paths.plan, paths.environment):
        if part.exists():
            archive(paths, part)


def _archive_leftovers(paths: RunPaths, plan: Plan) -> None:
    """Move folders of stages that the plan does not name, as one that failed and was renamed since."""
    named = {paths.stage(number, stage.name).root for number, stage in enumerate(plan.stages, start=1)}
    for status in sorted(paths.stages.glob("[0-9]*-*/status.json")):
        if status.parent not in named:
            place, name = archive(paths, status.parent), status.parent.name.partition("-")[2]
            record_event(paths, "stale", stage=name, why="the plan does not name it", archived=str(place))
            print(f"{name}: the plan does not name it any more; its folder is in {place}")


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
    """Whether a run has worked here; what others put beside it is theirs, and no obstacle. A `plan.yaml` alone says
    nothing: people call their own so, and other programs write an `environment.json`."""
    known = ((paths.environment, b'"packages"'), (paths.ledger, b'"event"'))
    if any(path.is_file() and mark in path.read_bytes() for path, mark in known):
        return True
    archived = (f"[0-9]*-{path.name}" for path in (paths.plan, paths.environment))
    return any(any((paths.root / "archive").glob(name)) for name in archived) or any(
        paths.stages.glob("[0-9]*-*/status.json")
    )


def is_written_by_whet(plan: Path) -> bool:
    """Whether a plan has every key where whet writes it, and nothing else, such as comments. What no program can read
    any more counts: a disk has damaged it, and nobody runs it."""
    try:
        text = plan.read_text(encoding="utf-8")
        found = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return True
    return not isinstance(found, dict) or (_is_resolved(found) and to_yaml(found) == text)


def _is_resolved(plan: Mapping[str, Any]) -> bool:
    stages = plan.get("stages")
    return (
        {"run", "model", "stages"} <= plan.keys() and isinstance(stages, list)
        and all(isinstance(stage, dict) and {"kind", "name", "start"} <= stage.keys() for stage in stages)
    )  # fmt: skip


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
