"""What of an evaluation its plan alone decides: which models are measured, and whether its tasks make sense."""

from __future__ import annotations

from collections.abc import Sequence

from whet.config.data import Data
from whet.config.evaluate import JudgementTask, PerplexityTask, Task, WinRateTask
from whet.config.stage import EvaluateStage, Stage
from whet.errors import ConfigError
from whet.runs.tasks import numbered


def models_asked(stage: EvaluateStage) -> tuple[str, ...]:
    """`models`; where those are left as they are, the model the stage starts from. Raises ConfigError where both are
    set and differ."""
    if stage.start == "previous" or stage.models == (stage.start,):
        return stage.models
    if stage.models == ("previous",):
        return (stage.start,)
    raise ConfigError(
        "`start` and `models` name different models to measure", field=f"{stage.name}.start",
        found=f"{stage.start!r}, and models {', '.join(stage.models)}", fix="leave `start` out",
    )  # fmt: skip


def check_measured(stages: Sequence[Stage]) -> None:
    """Raises ConfigError for what an evaluation of the plan would be refused for, before the stages in front of it
    train anything."""
    for stage in stages:
        if isinstance(stage, EvaluateStage):
            models_asked(stage)
        tasks = stage.tasks if isinstance(stage, EvaluateStage) else getattr(stage, "watch", ())
        for task, name in zip(tasks, numbered([task.name or task.type for task in tasks]), strict=True):
            check_task(task, name)


def check_task(task: Task, name: str) -> None:
    """Raises ConfigError for what a task would take without a word and not use."""
    _check_length(task, name)
    if isinstance(task, WinRateTask) and task.num_samples > 1:
        raise ConfigError(
            "win_rate compares one answer of each model to a prompt",
            field=f"tasks.{name}.num_samples",
            found=str(task.num_samples),
            fix="leave it out, and take more prompts",
        )
    if not isinstance(task, PerplexityTask | JudgementTask) and task.num_samples > 1 and task.temperature == 0:
        raise ConfigError(
            "greedy answers to one prompt are all the same",
            field=f"tasks.{name}.num_samples",
            found=str(task.num_samples),
            fix="set temperature above 0, or num_samples: 1",
        )


def _check_length(task: Task, name: str) -> None:
    """Only perplexity cuts rows. What a model is asked elsewhere is never cut: a shorter question is another one."""
    if isinstance(task, PerplexityTask):
        return
    for key in ("max_length", "on_overlong"):
        found = getattr(task.data, key)
        if found != Data.model_fields[key].default:
            raise ConfigError(
                f"a task of type {task.type} asks whole prompts, of any length",
                field=f"tasks.{name}.data.{key}",
                found=str(found),
                fix="leave it out: max_length and on_overlong are for perplexity",
            )
