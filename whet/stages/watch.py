"""Tasks measured while a model is training: the same tasks as the evaluate stage, on the model in memory."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from whet.config.stage import PolicyStage
from whet.stages.context import Context
from whet.stages.evaluate import measure_task
from whet.stages.measure.ready import ready_tasks
from whet.stages.rendering import render_with


def watch(
    stage: PolicyStage, context: Context, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase
) -> dict[str, float]:
    """Measure the stage's `watch` tasks, each under its own `data.system`; keys are `watch/TASK/METRIC`, TASK with a
    number where a name repeats."""
    renderer = render_with(tokenizer, context.start.path, context.model, system=None)
    measured: dict[str, float] = {}
    for ready in ready_tasks(stage.watch, folders=context.folders):
        measures, _ = measure_task(ready, model=model, tokenizer=tokenizer, renderer=renderer, label=stage.name)
        measured |= {f"watch/{measure.task}/{measure.metric}": measure.value for measure in measures}
    return measured
