"""Plans from files, from Python and from the command line.

    load_plan("plan.yaml", ["train.epochs=2"])                  what `whet run` does
    load_plan(None, ["model.path=m", "data.files=a.json"], kind="sft")       what `whet sft` does
    load_plan({"run": "runs/a", "model": {...}, "stages": [...]})            from Python

Paths in a plan are relative to the current directory, as on every command line. All that can be refused without
loading a model is refused here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from whet.config.base import Section
from whet.config.complain import plan_error
from whet.config.compose import compose
from whet.config.data import Data, Source
from whet.config.node import Node, plain
from whet.config.override import apply_overrides
from whet.config.plan import Plan
from whet.config.prompts import SelfInstruct
from whet.config.rewards import Composite, RewardModel
from whet.config.source import read_source, to_yaml
from whet.config.stage import (
    EvaluateStage,
    JudgeExamplesStage,
    OnlineDpoStage,
    OnlineStage,
    PairStage,
    PolicyStage,
    PrepareStage,
    PromptsStage,
    RejectStage,
    Stage,
    TrainStage,
)
from whet.errors import ConfigError, nearest


def load_plan(
    source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str] = (), *, kind: str | None = None
) -> Plan:
    """The resolved plan. With `kind` the keys at the top are those of that single stage.

    Raises ConfigError with file, line, key, what was found and what to do.
    """
    root = compose(apply_overrides(read_source(source), overrides, kind=kind), kind=kind)
    try:
        plan = Plan.model_validate(plain(root))
    except ValidationError as error:
        raise plan_error(error, root) from None
    earlier: dict[str, None] = {}
    for stage, node in zip(plan.stages, root.value["stages"].value, strict=True):
        _check_stage(stage, node, earlier)
        earlier[stage.name] = None
    return plan


def load_data(overrides: Sequence[str]) -> Data:
    """A data section from `key=value` pairs, with or without `data.` in front."""
    keys = [text if text.startswith("data.") else f"data.{text}" for text in overrides]
    root = apply_overrides(Node({}, "override", None, ""), keys)
    section = root.value.get("data", root)
    try:
        return Data.model_validate(plain(section))
    except ValidationError as error:
        raise plan_error(error, section) from None


def dump_plan(plan: Plan) -> str:
    """The plan as YAML with every key; loading that text gives the same plan."""
    return dump_section(plan)


def dump_section(section: Section) -> str:
    """Any part of a plan as YAML, every key written out."""
    return to_yaml(section.model_dump(mode="json"))


def _check_stage(stage: Stage, node: Node, earlier: Collection[str]) -> None:
    if isinstance(stage, TrainStage | PromptsStage | PrepareStage | JudgeExamplesStage):
        _need_files(stage.data, node, "data", "name the file to read, e.g. data.files=FILE.json")
        _check_references(stage.data, node, "data", earlier)
    if isinstance(stage, RejectStage):
        if stage.functions.read is None:
            _need_files(stage.data, node, "data", "name the file of prompts, e.g. data.files=FILE.jsonl")
        _check_references(stage.data, node, "data", earlier)
        _check_judges_alone(stage, node)
    if isinstance(stage, PairStage):
        for side, files in (("chosen", stage.chosen), ("rejected", stage.rejected)):
            for file in files:
                _check_reference(file, node, side, earlier)
    if isinstance(stage, PromptsStage):
        _check_references(stage.seen, node, "seen", earlier)
        if isinstance(stage.source, SelfInstruct) and stage.num is None:
            raise _error_at(node, "num", "is required to make new prompts", fix="say how many, e.g. num: 500")
    if isinstance(stage, OnlineStage):
        _check_learns(stage, node)
    if isinstance(stage, EvaluateStage) and not stage.tasks:
        raise _error_at(
            node, "tasks", "the stage measures nothing",
            fix="add one, e.g. tasks=[{type: perplexity, data: {files: FILE}}]",
        )  # fmt: skip
    tasks = stage.tasks if isinstance(stage, EvaluateStage) else stage.watch if isinstance(stage, PolicyStage) else ()
    for index, task in enumerate(tasks):
        place = f"{'tasks' if isinstance(stage, EvaluateStage) else 'watch'}.{index}.data"
        _need_files(task.data, node, place, "name the held-out file")
        _check_references(task.data, node, place, earlier)
        for key in ("eval_files", "eval_fraction"):
            if getattr(task.data, key):
                raise _error_at(
                    node, f"{place}.{key}", "has no meaning here: a task measures all of its files", fix="leave it out"
                )


def _check_judges_alone(stage: RejectStage, node: Node) -> None:
    """Refuse scores that depend on what was scored before: an answer is right or not whatever came before it."""
    match stage.reward:
        case RewardModel(normalise=normalise):
            normalised = normalise != "none"
        case Composite(parts=parts):
            normalised = any(part.normalise != "none" for part in parts)
        case _:
            normalised = False
    if normalised:
        raise _error_at(
            node, "reward", "is normalised by what came before, and accept.min_score is one number for all",
            fix="leave normalise out, and set accept.min_score on the scale of the scores",
        )  # fmt: skip


def _check_learns(stage: OnlineStage, node: Node) -> None:
    """Refuse online RL in which nothing could be learnt."""
    size, prompts, objective = stage.rollout.group_size, stage.train.batch_size, stage.objective
    if size < 2 and (isinstance(stage, OnlineDpoStage) or stage.objective.needs_group):
        raise _error_at(
            node, "rollout.group_size", f"{objective.type} compares the samples of a prompt, and one has none to "
            f"compare with (found {size})", fix="take at least 2, or objective.type=reinforce_plus_plus, or `ppo`",
        )  # fmt: skip
    if isinstance(stage, OnlineDpoStage):
        return
    if stage.objective.minibatches > prompts:
        raise _error_at(
            node, "objective.minibatches", f"there are more than a round has prompts ({stage.objective.minibatches} of "
            f"train.batch_size {prompts})", fix=f"take at most {prompts}, or raise train.batch_size",
        )  # fmt: skip
    if stage.rollout.staleness and stage.objective.importance_correction != "none":
        raise _error_at(
            node, "objective.importance_correction", "compares the engine with the trainer's weights that drew the "
            "tokens, which rollout.staleness leaves behind", fix="leave one of the two out",
        )  # fmt: skip


def _need_files(data: Data, node: Node, place: str, fix: str) -> None:
    if not data.files:
        raise _error_at(node, f"{place}.files", "is required", fix=fix)


def _check_references(data: Data, node: Node, place: str, earlier: Collection[str]) -> None:
    for field, files in (("files", data.files), ("eval_files", data.eval_files)):
        for file in files:
            _check_reference(file.path if isinstance(file, Source) else file, node, f"{place}.{field}", earlier)


def _check_reference(path: str, node: Node, field: str, earlier: Collection[str]) -> None:
    """`@NAME/FILE` must name an earlier stage."""
    name = path[1:].partition("/")[0]
    if path.startswith("@") and name not in earlier:
        near = nearest(name, earlier)
        raise _error_at(
            node,
            field,
            f"{path!r} asks for a file of an earlier stage, and none is called {name!r}",
            fix=f"did you mean @{near}/...?" if near else f"earlier stages: {', '.join(earlier) or 'none'}",
        )


def _error_at(stage: Node, field: str, problem: str, *, fix: str) -> ConfigError:
    """An error at the deepest part of `field` that was written."""
    node = stage
    for key in field.split("."):
        match node.value:
            case dict() if key in node.value:
                node = node.value[key]
            case list():
                node = node.value[int(key)]
            case _:
                break
    path = f"{stage.path}.{field}" if stage.path else field
    return ConfigError(problem, file=node.file, line=node.line, field=path, fix=fix)
