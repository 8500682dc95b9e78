"""A run directory as typed values, for the report, `whet status` and the web pages.

    run = read_run(Path("runs/first"))
    [(stage.name, stage.status, stage.seconds) for stage in run.stages]

Reading never needs a finished run: what is not there yet is None or empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from whet.errors import RunError
from whet.runs.files import read_json, read_jsonl, read_yaml, reading, typed_all
from whet.runs.layout import RunPaths, StagePaths
from whet.runs.lock import is_held
from whet.schema.artifacts import Measure

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """An answer kept for reading: one line of `samples.jsonl`.

    `score` is the checker's value in [0, 1], or None where the task scores no single answer.
    """

    model: str
    task: str
    key: str
    prompt: str
    completion: str
    reference: str | None
    score: float | None
    images: tuple[str, ...] = ()
    """Pictures of the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """One stage as it stands on disk."""

    paths: StagePaths
    name: str
    kind: str
    status: str
    """`waiting`, `running`, `done`, `failed`, `interrupted` (whoever worked on it is gone), or `left out`: of a round
    that was not made."""
    planned: bool = True
    """False for a folder that the plan names no more."""
    seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the stage reported at its end."""
    error: str | None = None
    config: Row = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    """`metrics.jsonl`: optimiser steps and evaluations, in the order they were written."""
    data: Row | None = None
    """The data ledger."""
    evaluation: tuple[Measure, ...] = ()
    samples: tuple[SampleRow, ...] = ()

    @property
    def steps(self) -> list[Row]:
        """Rows of optimiser steps."""
        return [row for row in self.rows if "loss" in row]

    @property
    def evaluations(self) -> list[Row]:
        """Rows of evaluations during training."""
        return [row for row in self.rows if "loss" not in row]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run as it stands on disk."""

    paths: RunPaths
    plan: Row
    plan_text: str
    environment: Row
    summary: Row | None
    """`summary.json`, once the pipeline has written it."""
    stages: tuple[StageView, ...]

    @property
    def name(self) -> str:
        return self.paths.root.resolve().name

    @property
    def evaluation(self) -> list[Measure]:
        """Every measured value of the run, stage after stage."""
        return [measure for stage in self.stages for measure in stage.evaluation]

    @property
    def status(self) -> str:
        """`done` when every stage of the plan is, but those left out; else the first state that keeps it from that."""
        states = [stage.status for stage in self.stages if stage.planned]
        return next((state for state in states if state not in ("done", "left out")), "done")


def read_run(root: Path) -> RunView:
    """Read what lies in a run directory. Raises RunError where `root` is none."""
    paths = RunPaths(root)
    if not paths.plan.exists() and not paths.stages.is_dir():
        found = "neither plan.yaml nor stages/" if root.is_dir() else "nothing there"
        fix = "give the directory that the plan names under `run`"
        raise RunError("not a run directory", file=str(root), found=found, fix=fix)
    plan = read_yaml(paths.plan) if paths.plan.exists() else {}
    plan_text = paths.plan.read_text(encoding="utf-8") if plan else ""
    summary = _mapping(paths.summary)
    stages = _with_summary(_stages(paths, plan), paths, summary or {})
    return RunView(
        paths=paths,
        plan=plan,
        plan_text=plan_text,
        environment=_mapping(paths.environment) or {},
        summary=summary,
        stages=_with_lock(stages, paths),
    )


def _with_summary(stages: Sequence[StageView], paths: RunPaths, summary: Row) -> tuple[StageView, ...]:
    """A stage without a folder may be one that the rounds ended before."""
    with reading(paths.summary):
        left_out = {known["name"] for known in summary.get("stages", ()) if known["status"] == "left out"}
    return tuple(replace(stage, status="left out") if stage.name in left_out else stage for stage in stages)


def _with_lock(stages: Sequence[StageView], paths: RunPaths) -> tuple[StageView, ...]:
    """A killed process leaves `running` behind: nothing runs where nobody holds the run, nor what no plan names."""
    if not any(stage.status == "running" for stage in stages):
        return tuple(stages)
    held = is_held(paths)
    gone = [stage.status == "running" and (held is False or not stage.planned) for stage in stages]
    return tuple(replace(s, status="interrupted") if is_gone else s for s, is_gone in zip(stages, gone, strict=True))


def _stages(paths: RunPaths, plan: Row) -> tuple[StageView, ...]:
    """The plan's stages in order, each with its folder where it has one; folders the plan does not name come last."""
    folders = sorted(path for path in paths.stages.glob("[0-9]*-*") if path.is_dir())
    with reading(paths.plan):
        named = [
            (paths.stage(number, stage.get("name") or stage["kind"]), stage["kind"])
            for number, stage in enumerate(plan.get("stages", ()), start=1)
        ]
    known = {stage.root for stage, _ in named}
    others = [read_stage(StagePaths(folder)) for folder in folders if folder not in known]
    if plan:  # without one nothing is left over
        others = [replace(stage, planned=False) for stage in others]
    return (*(read_stage(stage, kind) for stage, kind in named), *others)


def read_stage(paths: StagePaths, kind: str = "") -> StageView:
    """Read one stage's folder, finished or not, or not even begun."""
    status = _mapping(paths.status) or {}
    config = read_yaml(paths.config) if paths.config.exists() else {}
    return StageView(
        paths=paths,
        name=status.get("name") or paths.root.name.split("-", 1)[-1],
        kind=status.get("kind") or kind,
        status=status.get("status", "running" if paths.root.is_dir() else "waiting"),
        seconds=status.get("seconds"),
        metrics=status.get("metrics") or {},
        error=status.get("error"),
        config=config,
        rows=_rows(paths.metrics),
        data=_mapping(paths.data),
        evaluation=typed_all(Measure, read_json(paths.evaluation), paths.evaluation) if paths.evaluation.exists() else (),
        samples=typed_all(SampleRow, read_jsonl(paths.samples), paths.samples),
    )


def _rows(path: Path) -> tuple[Row, ...]:
    """Lines of `metrics.jsonl`, which all have their step: a number, and neither `true` nor in quotes."""
    rows = read_jsonl(path)
    with reading(path):
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict) or type(row.get("step")) not in (int, float):
                raise ValueError(f"line {number} without step")
    return tuple(rows)


def _mapping(path: Path) -> dict[str, Any] | None:
    """Keys and values of a file that may not be there yet. Raises RunError where it holds something else."""
    found = read_json(path) if path.exists() else None
    with reading(path):
        if found is not None and not isinstance(found, dict):
            raise TypeError(f"no keys and values but {type(found).__name__}")
    return found
