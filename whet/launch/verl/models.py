"""Models and folders that the stages in front of an exported one have left in the plan's run directory."""

from __future__ import annotations

from pathlib import Path

from whet.config.plan import Plan
from whet.config.stage import MergeStage, OnlinePolicyStage, RewardStage, Stage
from whet.errors import ConfigError, RunError, nearest
from whet.runs.layout import RunPaths
from whet.runs.ledger import read_status
from whet.schema.artifacts import ModelRef
from whet.stages.context import Context

ELSEWHERE = {
    "online_dpo": "verl has no preference losses", "dpo": "verl has no preference losses",
    "kto": "verl has no preference losses", "soft_preference": "verl has no preference losses",
    "reward": "verl trains no reward models", "reward_weighted": "verl has no offline losses of stored rewards",
    "sft": "verl's SFT is another program, and whet does the same on many GPUs by `launch.processes`",
}  # fmt: skip
"""Why a stage that trains is not exported; every other kind does not train."""


def exported_stage(plan: Plan, name: str | None) -> tuple[int, OnlinePolicyStage]:
    """The stage to export, with its number from 1: the named one, else the only one that verl knows.

    Raises ConfigError where there is none, or several.
    """
    fitting = [stage.name for stage in plan.stages if isinstance(stage, OnlinePolicyStage)]
    if name is None and len(fitting) != 1:
        raise ConfigError(
            "which stage? verl runs ppo, grpo and gspo" if fitting else _why_none(plan), field="--stage",
            found=", ".join(fitting) or ", ".join(stage.kind for stage in plan.stages),
            fix=f"name one, e.g. --stage {fitting[0]}" if fitting else None,
        )  # fmt: skip
    wanted = name or fitting[0]
    for number, stage in enumerate(plan.stages, start=1):
        if stage.name != wanted:
            continue
        if not isinstance(stage, OnlinePolicyStage):
            raise ConfigError(
                f"is a {stage.kind} stage, and verl runs ppo, grpo and gspo: "
                f"{ELSEWHERE.get(stage.kind, 'it trains nothing')}",
                field="--stage", found=wanted, fix=f"name one of {', '.join(fitting)}" if fitting else None,
            )  # fmt: skip
        return number, stage
    near = nearest(wanted, fitting)
    raise ConfigError(
        "the plan has no such stage", field="--stage", found=wanted, fix=f"did you mean {near}?" if near else None
    )


def _why_none(plan: Plan) -> str:
    reasons = dict.fromkeys(ELSEWHERE[stage.kind] for stage in plan.stages if stage.kind in ELSEWHERE)
    return f"the plan has no stage that verl runs (ppo, grpo, gspo): {'; '.join(reasons) or 'nothing in it trains'}"


def context_of(plan: Plan, number: int) -> Context:
    """What the stage is given: the models and folders of the stages in front of it, as far as they are done.

    Raises RunError where the model it starts from is not there.
    """
    paths, stage = RunPaths(Path(plan.run)), plan.stages[number - 1]
    base = ModelRef(path=plan.model.path, adapter=plan.model.adapter)
    models, folders, waiting, classifiers = {"base": base, "previous": base}, {}, [], set[str]()
    for place, earlier in enumerate(plan.stages[: number - 1], start=1):
        status = read_status(paths.stage(place, earlier.name))
        if status is None or status.status != "done":
            waiting.append(earlier)
            continue
        folders[earlier.name] = paths.stage(place, earlier.name).root
        if status.result.model is None:
            continue
        models[earlier.name] = status.result.model
        if isinstance(earlier, RewardStage) or (isinstance(earlier, MergeStage) and earlier.start in classifiers):
            classifiers.add(earlier.name)
        else:
            models["previous"] = status.result.model
    _refuse_waiting(plan, stage, waiting)
    return Context(
        model=plan.model, start=models[stage.start], models=models, paths=paths.stage(number, stage.name),
        folders=folders, stage=stage,
    )  # fmt: skip


def _refuse_waiting(plan: Plan, stage: Stage, waiting: list[Stage]) -> None:
    if not waiting:
        return
    raise RunError(
        "is not done yet, and the exported stage comes behind it", field=f"stages.{waiting[0].name}",
        found=f"run directory {plan.run}", fix=f"`whet run PLAN.yaml --until {waiting[-1].name}`, then export",
    )  # fmt: skip


def whole_start(context: Context) -> str:
    """The checkpoint that the stage starts from. verl takes no adapter to go on from that the reference would keep."""
    start = context.start
    if start.adapter is not None:
        raise RunError(
            "starts from an adapter, which verl's reference would leave out", field=f"{context.stage.name}.start",
            found=start.adapter, fix="put a merge stage in front of it",
        )  # fmt: skip
    path = Path(start.path)
    return str(path.resolve()) if path.exists() else start.path


def named(context: Context, name: str) -> ModelRef:
    """A model by its name in the plan, else a checkpoint."""
    return context.start if name == "start" else context.models.get(name) or ModelRef(path=name)
