"""The pipeline: the plan's stages in order, each skipped while it and what it reads are unchanged.

Killed at any moment, the same command goes on where it stood. What an earlier run made is never overwritten: a stage
that has to be made again is moved to `archive/` first.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, assert_never

import yaml

from whet.config.plan import Plan
from whet.config.repeat import Rounds
from whet.config.stage import (
    EvaluateStage,
    JudgeExamplesStage,
    MergeStage,
    OfflineStage,
    OnlineStage,
    PairStage,
    PrepareStage,
    PromptsStage,
    RejectStage,
    RewardStage,
    SharedStage,
    Stage,
    TrainStage,
)
from whet.errors import ConfigError, RunError, UserError, first_line, nearest
from whet.ranks.group import ALONE, Ended, Ranks, join_ranks, refuse_other_number
from whet.ranks.pulse import beat, pulse
from whet.ranks.together import together
from whet.runs.files import sweep, write_json, write_text, writing
from whet.runs.layout import RunPaths
from whet.runs.ledger import Status, now, read_status, record_event, seconds_so_far, write_status
from whet.runs.lock import only_one_process
from whet.schema.artifacts import ModelRef, StageResult
from whet.stages.ahead import check_ahead
from whet.stages.build import build_model
from whet.stages.claim import archive, claim
from whet.stages.context import Context
from whet.stages.inputs import files_in, input_hashes, models_in
from whet.stages.loops import Outcome, ended_round, judge_rounds, stopped_before, tell_stopped
from whet.stages.measure.asked import check_measured


def run_plan(plan: Plan, *, fresh: bool = False, until: str | None = None) -> dict[str, Any]:
    """Run every stage of a plan that is not done yet; returns the content of summary.json.

    `fresh` moves whatever an earlier plan left in the run directory to its archive; `until` names the last stage to
    run, and those behind it wait for a later call. Raises ConfigError for a stage the plan has not, RunError for a
    directory that another plan has used, and the stage's own UserError where a stage cannot go on.
    """
    stages = stages_until(plan, until)
    check_measured(stages)
    refuse_other_number(plan.launch.processes)
    paths = RunPaths(Path(plan.run))
    ranks = join_ranks(plan.launch.watchdog, paths.stacks)
    with together(), only_one_process(paths) if ranks.is_main else nullcontext():
        ranks.on_main(partial(check_ahead, plan, stages, paths, fresh=fresh))
        ranks.on_main(partial(claim, paths, plan, fresh=fresh))
        ranks.on_main(partial(build_model, plan.model))
        walk = Walk(plan, paths, ranks)
        for number, stage in enumerate(stages, start=1):
            walk.step(number, stage)
        return ranks.on_main(partial(write_summary, paths, plan, walk.done, walk.loops))


class Walk:
    """The way through a plan: what is there for the next stage, and whether it is due."""

    def __init__(self, plan: Plan, paths: RunPaths, ranks: Ranks) -> None:
        base = ModelRef(path=plan.model.path, adapter=plan.model.adapter)
        self.plan, self.paths, self.ranks = plan, paths, ranks
        self.models = {"base": base, "previous": base}
        self.folders: dict[str, Path] = {}
        self.done: list[Status] = []
        self.loops: dict[str, Outcome] = {}
        self._left_out: set[str] = set()
        self._classifiers: set[str] = set()

    def step(self, number: int, stage: Stage) -> None:
        """Do a stage, unless its rounds have stopped, and take over what it left."""
        if (stopped := stopped_before(self.plan, stage.name, self.loops)) is not None:
            self.ranks.on_main(partial(print, f"{stage.name}: left out, {stopped}"))
            self._left_out.add(stage.name)
            return
        refuse_left_out(stage, self._left_out, self.folders)
        stage_paths = self.paths.stage(number, stage.name)
        context = Context(
            model=self.plan.model, start=self.models[stage.start], models=dict(self.models), paths=stage_paths,
            folders=dict(self.folders), stage=stage, ranks=self.ranks, launch=self.plan.launch,
        )  # fmt: skip
        beat(f"stage {stage.name!r}")
        try:
            status = run_stage(self.paths, stage, context)
        finally:
            if self.ranks.is_main:
                write_summary(self.paths, self.plan, self.done, self.loops)
        self.done.append(status)
        self.folders[stage.name] = stage_paths.root
        self._take_model(stage, status)
        if (ended := ended_round(self.plan, stage.name)) is not None:
            self._end_round(*ended)

    def _take_model(self, stage: Stage, status: Status) -> None:
        if status.result.model is None:
            return
        self.models[stage.name] = status.result.model
        if isinstance(stage, RewardStage) or (isinstance(stage, MergeStage) and stage.start in self._classifiers):
            self._classifiers.add(stage.name)  # what follows goes on from a language model
        else:
            self.models["previous"] = status.result.model

    def _end_round(self, loop: Rounds, number: int) -> None:
        """Compare the rounds; behind the last one their name is the model they leave."""
        self.loops[loop.name] = outcome = judge_rounds(loop, number, self.done, self.folders)
        if number == loop.repeat or outcome.stopped:
            self.models[loop.name] = self.models["previous"] = self.models[outcome.kept]
        if outcome.stopped:
            self.ranks.on_main(partial(tell_stopped, self.paths, loop, number, outcome.stopped))


def stages_until(plan: Plan, last: str | None) -> tuple[Stage, ...]:
    """The plan's stages up to the one of this name, which is among them; all where there is no name."""
    names = [stage.name for stage in plan.stages]
    if last is None:
        return plan.stages
    if last not in names:
        near = nearest(last, names)
        raise ConfigError(
            "the plan has no such stage", field="--until", found=repr(last),
            fix=f"did you mean {near}?" if near else f"its stages are {', '.join(names)}",
        )  # fmt: skip
    return plan.stages[: names.index(last) + 1]


def refuse_left_out(stage: Stage, left_out: Collection[str], folders: Mapping[str, Path]) -> None:
    """A stage may ask for a model or a file of a round that was never made. Raises RunError for it."""
    files = [name[1:].partition("/")[0] for name, _ in files_in(stage, folders) if name.startswith("@")]
    for name in (stage.start, *models_in(stage), *files):
        if name in left_out:
            raise RunError(
                f"stage {stage.name!r} asks for {name!r}, a round that was not made: the rounds stopped before it",
                fix="ask for the rounds by their name, e.g. `start: round`: that is the model they left",
            )  # fmt: skip


def run_stage(run: RunPaths, stage: Stage, context: Context) -> Status:
    """Skip, resume or run one stage."""
    status = context.ranks.on_main(partial(begin_stage, run, stage, context))
    return status if status.status == "done" else finish_stage(run, stage, context, status)


def begin_stage(run: RunPaths, stage: Stage, context: Context) -> Status:
    """How the stage ended before, where that still stands; else its status as running, written down."""
    config = {"stage": stage.model_dump(mode="json"), "model": context.model.model_dump(mode="json")}
    inputs = input_hashes(stage, context.model, context.start, context.models, context.folders)
    earlier = read_status(context.paths)
    stale = earlier.why_stale(config, inputs) if earlier is not None else None
    if earlier is not None and stale is None and earlier.status == "done" and has_model(earlier):
        print(f"{stage.name}: done before, inputs unchanged")
        return earlier
    if stale is not None:
        place = archive(run, context.paths.root)
        record_event(run, "stale", stage=stage.name, why=stale, archived=str(place))
        print(f"{stage.name}: made again, {stale}; the earlier result is in {place}")
    resumed = earlier is not None and context.paths.root.exists()
    record_event(run, "resumed" if resumed else "started", stage=stage.name)
    status = Status(
        name=stage.name, kind=stage.kind, status="running", config=config, inputs=inputs, started=now(),
        seconds=seconds_so_far(context.paths, earlier) if earlier is not None and resumed else None,
    )  # fmt: skip
    with writing(context.paths.root):
        context.paths.root.mkdir(parents=True, exist_ok=True)
    sweep(context.paths.root)
    write_text(context.paths.config, yaml.safe_dump(config["stage"], sort_keys=False, allow_unicode=True))
    write_status(context.paths, status)
    return status


def has_model(status: Status) -> bool:
    """Whether the model a finished stage made is still where it was put."""
    model = status.result.model
    return model is None or Path(model.adapter or model.path).exists()


def finish_stage(run: RunPaths, stage: Stage, context: Context, status: Status) -> Status:
    """Run the stage and write how it ended. The rank that fails writes it: the first may be ended before it knows."""
    started = time.perf_counter()

    def seconds() -> float:
        return round((status.seconds or 0.0) + time.perf_counter() - started, 2)

    try:
        result = work_on(stage, context)
    except BaseException as error:
        if (state := state_after(error, context.ranks)) is not None:
            why = what_happened(error)
            with suppress(RunError):  # on a full disk the error itself says more
                failed = replace(status, status=state, finished=now(), seconds=seconds(), error=why)
                write_status(context.paths, failed)
                record_event(run, state, stage=stage.name, **({"error": why} if why else {}))
        raise

    def ended() -> Status:
        done = replace(
            status, status="done", finished=now(), seconds=seconds(), metrics=dict(result.metrics),
            model=asdict(result.model) if result.model else None,
            evaluation=tuple(asdict(measure) for measure in result.evaluation),
        )  # fmt: skip
        write_status(context.paths, done)
        record_event(run, "done", stage=stage.name, seconds=done.seconds)
        return done

    return context.ranks.on_main(ended)


def state_after(error: BaseException, ranks: Ranks) -> Literal["failed", "interrupted"] | None:
    """How this error leaves a stage; None where another rank says it, which has failed or cannot be reached."""
    if isinstance(error, UserError):
        return "failed"
    if isinstance(error, Ended) or pulse.lost:
        return None
    if isinstance(error, Exception):
        return "failed"
    return "interrupted" if ranks.is_main else None


def what_happened(error: BaseException) -> str | None:
    """The error in one line: a defect with its type. Nothing where a person stopped it."""
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {first_line(error)}" if isinstance(error, Exception) else None


def work_on(stage: Stage, context: Context) -> StageResult:
    """The stage's work, by all ranks where they can share it, else by the first while the others wait."""
    if isinstance(stage, TrainStage | SharedStage):
        return dispatch(stage, context)
    alone = replace(context, ranks=ALONE)
    return context.ranks.on_main(partial(dispatch, stage, alone), f"stage {stage.name!r}, which the first rank does")


def dispatch(stage: Stage, context: Context) -> StageResult:
    """Each kind of stage in its own module, imported when it is needed."""
    if isinstance(stage, OfflineStage):
        from whet.stages import offline

        return offline.run(stage, context)
    if isinstance(stage, OnlineStage):
        from whet.stages import online

        return online.run(stage, context)
    match stage:
        case PromptsStage():
            from whet.stages import make_prompts

            return make_prompts.run(stage, context)
        case PrepareStage():
            from whet.stages import prepare

            return prepare.run(stage, context)
        case RejectStage():
            from whet.stages import reject

            return reject.run(stage, context)
        case JudgeExamplesStage():
            from whet.stages import judge_examples

            return judge_examples.run(stage, context)
        case PairStage():
            from whet.stages import pair

            return pair.run(stage, context)
        case EvaluateStage():
            from whet.stages import evaluate

            return evaluate.run(stage, context)
        case MergeStage():
            from whet.stages import merge

            return merge.run(stage, context)
        case _:
            assert_never(stage)


def write_summary(
    paths: RunPaths, plan: Plan, done: list[Status], loops: Mapping[str, Outcome]
) -> dict[str, Any]:  # fmt: skip
    """summary.json: every stage of the plan with its state, all measured values, and how rounds compare."""
    stages, evaluation, newest = [], list[dict[str, Any]](), ""
    for number, stage in enumerate(plan.stages, start=1):
        left_out = stopped_before(plan, stage.name, loops) and stage.name not in [status.name for status in done]
        seen = next((s for s in done if s.name == stage.name), None)
        status = None if left_out else seen or read_status(paths.stage(number, stage.name))
        stages.append({
            "name": stage.name, "kind": stage.kind,
            "status": "left out" if left_out else status.status if status else "waiting",
            "seconds": status.seconds if status else None, "metrics": dict(status.metrics) if status else {},
        })  # fmt: skip
        finished = (status.finished if status else None) or ""
        # What this call has not come to may have measured what has been made again since.
        if status is not None and (seen is not None or finished >= newest):
            evaluation += [dict(measure) for measure in status.evaluation]
            newest = max(newest, finished)
    summary = {"run": plan.run, "stages": stages, "evaluation": evaluation}
    if plan.loops:
        summary["loops"] = [loops[loop.name].to_json(loop) for loop in plan.loops if loop.name in loops]
    write_json(paths.summary, summary)
    return summary
