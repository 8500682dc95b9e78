"""Measure models on held-out tasks: every model of the stage, one after another, on every task.

evaluation.json  every value with its interval         samples.jsonl  answers to the same prompts, model by model
replies.jsonl    every reply as it came: a killed stage asks for none of them again
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from whet.config.engine import Engine
from whet.config.evaluate import WinRateTask
from whet.config.stage import EvaluateStage
from whet.data.ledger import Ledger
from whet.errors import ConfigError, nearest
from whet.rollout.build import Answering, Served, engine_of_another
from whet.runs.files import write_json, write_jsonl
from whet.runs.given import ref_of
from whet.runs.reader import SampleRow
from whet.schema.artifacts import Measure, ModelRef, StageResult, is_hub_id
from whet.stages.context import Context
from whet.stages.measure.answers import Measured
from whet.stages.measure.asked import models_asked
from whet.stages.measure.ready import ReadyTask, ready_tasks
from whet.stages.measure.store import ReplyStore
from whet.stages.measure.subject import Called, RefLoader, Subject
from whet.stages.measure.task import measure, measure_task
from whet.stages.rendering import renderer_of

__all__ = ["measure_task", "run"]


def run(stage: EvaluateStage, context: Context) -> StageResult:
    """Measure, write the files above, and hand the values on."""
    if not stage.tasks:
        raise ConfigError("nothing to measure", field=f"{stage.name}.tasks", fix="add a task, e.g. {type: perplexity}")
    labels = model_labels(models_asked(stage), context)
    ready = ready_tasks(stage.tasks, folders=context.folders)
    store = ReplyStore(context.paths.file("replies.jsonl"))
    measures: list[Measure] = []
    samples: list[SampleRow] = []
    ledgers: dict[str, Ledger] = {}
    for label in labels:
        for task, measured in measure_model(label, ready, store, stage, context):
            measures += measured.measures
            samples += measured.samples
            ledgers.setdefault(task.name, measured.ledger)
    write_json(context.paths.data, {name: ledger.to_json() for name, ledger in ledgers.items()})
    write_json(context.paths.evaluation, [asdict(measure) for measure in measures])
    write_jsonl(context.paths.samples, [_line(sample) for sample in samples])
    metrics = store.counts() | {"models": len(labels), "tasks": len(ready)}
    return StageResult(metrics=metrics, evaluation=tuple(measures))


def _line(sample: SampleRow) -> dict[str, Any]:
    row = asdict(sample)
    return row if sample.images else {name: value for name, value in row.items() if name != "images"}


def measure_model(
    label: str, tasks: Sequence[ReadyTask], store: ReplyStore, stage: EvaluateStage, context: Context
) -> Iterator[tuple[ReadyTask, Measured]]:
    """All tasks on one model, which is in memory only for that long."""
    loaded = load_subject(label, context, stage.engine, system=None)
    with closing(loaded.voice):
        yield from measure_tasks(loaded, tasks, store, stage, context)


def measure_tasks(
    loaded: Subject, tasks: Sequence[ReadyTask], store: ReplyStore, stage: EvaluateStage, context: Context
) -> Iterator[tuple[ReadyTask, Measured]]:
    label = loaded.label
    for task in tasks:
        if isinstance(task.task, WinRateTask) and _label(task.task.against, context) == label:
            print(f"{label}: {task.name} left out, a model has no match with itself")
            continue
        system = task.task.data.system
        subject = replace(loaded, renderer=loaded.renderer.speaking(system))
        load = loader(context, stage.engine, system=system)
        measured = measure(task, subject, store=store, num_logged=stage.num_logged, load=load)
        for one in measured.measures:
            if "/" not in one.metric:
                print(f"{label}: {one.task} {one.metric} {one.value:.3f} [{one.low:.3f}, {one.high:.3f}] n={one.num}")
        yield task, measured


def model_labels(names: Sequence[str], context: Context) -> list[str]:
    """The names under which models stand in tables: `previous` becomes the stage it stands for; none comes twice."""
    return list(dict.fromkeys(_label(name, context) for name in names))


def _label(name: str, context: Context) -> str:
    if name != "previous":
        return name
    ref = context.models["previous"]
    return next(known for known, other in context.models.items() if known != "previous" and other == ref)


def loader(context: Context, engine: Engine, *, system: str | None) -> RefLoader:
    """Finds the second model of a task by name or directory."""
    return lambda name, own: load_subject(
        _label(name, context), context, own or engine_of_another(engine), system=system
    )


def load_subject(label: str, context: Context, engine: Engine, *, system: str | None) -> Subject:
    config, ref = context.model, _ref(label, context)
    renderer = renderer_of(ref, config, system=system)
    voice = Called(
        engine,
        Served(ref=ref, model=config, folder=context.paths.root),
        Answering.by(renderer, batch_size=1, exact=True),
    )
    return Subject(label=label, voice=voice, tokenizer=renderer.template.tokenizer, renderer=renderer)


def _ref(label: str, context: Context) -> ModelRef:
    if label in context.models or Path(label).is_dir() or is_hub_id(label):
        return ref_of(label, context.models)
    near = nearest(label, context.models)
    raise ConfigError(
        "no such model",
        field=context.stage.name,
        found=repr(label),
        fix=f"did you mean {near}?" if near else f"write one of {', '.join(context.models)}, or a checkpoint directory",
    )
