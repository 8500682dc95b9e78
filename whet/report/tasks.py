"""Tasks of several stages that share a name: one where they measure the same, else shown apart and never compared.

A task without a name is called by its type, so two stages may both have an `exact`, on different files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from whet.runs.reader import RunView, StageView
from whet.runs.tasks import sections

Named = tuple[str, str]
"""Names of a stage and of one of its tasks."""


def told_apart(run: RunView) -> RunView:
    """The run with one name for one thing: a task's name that stands for several gets its stages behind it."""
    labels = _labels(run)
    return replace(run, stages=tuple(_renamed(stage, labels) for stage in run.stages))


def _labels(run: RunView) -> dict[Named, str]:
    """`exact (first)` and `exact (second, third)`, by stage and name, for names that need it."""
    meant: dict[str, dict[str, list[str]]] = {}
    for stage in run.stages:
        if stage.evaluation or stage.samples:
            for name, section in sections(stage.config).items():
                meant.setdefault(name, {}).setdefault(section, []).append(stage.name)
    return {
        (stage, name): f"{name} ({', '.join(stages)})"
        for name, found in meant.items() if len(found) > 1
        for stages in found.values()
        for stage in stages
    }  # fmt: skip


def _renamed(stage: StageView, labels: Mapping[Named, str]) -> StageView:
    def label(task: str) -> str:
        return labels.get((stage.name, task), task)

    return replace(
        stage,
        evaluation=tuple(replace(one, task=label(one.task)) for one in stage.evaluation),
        samples=tuple(replace(one, task=label(one.task)) for one in stage.samples),
    )
