"""From the short plan a person writes to the full one: sections at the top become part of every stage that has them.

    train: {epochs: 2}            stages: [{kind: sft, name: sft, train: {epochs: 2}},
    stages: [sft, dpo]       ->            {kind: dpo, name: dpo, train: {epochs: 2}}]

What a stage says itself always wins. `seed` fills every seed that is not set.
"""

from __future__ import annotations

from pathlib import Path

from whet.config.base import Section
from whet.config.catalogue import section_keys, sections, stage_models
from whet.config.node import Node, describe, join, plain
from whet.config.override import is_named, is_repeat, stage_names
from whet.config.unroll import unroll
from whet.config.values import MOST_SEED
from whet.errors import ConfigError, nearest

SEEDED = ("data", "train", "rollout")
TASK_LISTS = ("tasks", "watch")
TYPED = ("objective", "value", "judge")
"""Sections whose type a stage decides where the plan does not."""


def compose(root: Node, *, kind: str | None = None) -> Node:
    """The plan with one node per stage and nothing of a stage left at the top, in the shape of `config.plan.Plan`."""
    loops: list[Node] = []
    if kind is None:
        stages, loops = unroll(_with_shared(_listed_stages(root), root))
    else:
        stages = [_only_stage(root, kind)]
    stages = [_with_type(stage) for stage in stages]
    if "seed" in root.value:
        seed = _checked_seed(root.value["seed"])
        stages = [_seeded(stage, seed) for stage in stages]
    stages = _excluding(stages)
    named = [
        stage.with_entry("name", stage.replace(name)) if stage.is_dict and not is_named(stage) else stage
        for stage, name in zip(stages, stage_names(stages), strict=True)
    ]
    # Keys that are neither the plan's nor a stage's stay, so that the strict model names them.
    kept = {"run", "model", "launch"} if kind is not None else root.value.keys() - section_keys() - {"seed", "stages"}
    top = {key: entry for key, entry in root.value.items() if key in kept}
    if "run" not in top:
        top["run"] = root.replace(_default_run(root, kind))
    origin = root.value.get("stages", root)
    if loops:
        top["loops"] = origin.replace(loops)
    return root.replace({**top, "stages": origin.replace(named)})


def _with_shared(entries: list[Node], root: Node) -> list[Node]:
    """Every section at the top laid under the stages that have it, those of a `repeat` too."""
    bodies = [_body(entry) for entry in entries]
    flat = [stage for body in bodies for stage in body]
    for stage in flat:
        if not is_repeat(stage):  # one inside another, which unrolling refuses
            _check_kind(stage)
    for name in sorted(section_keys() & root.value.keys()):
        flat = _share(flat, name, root.value[name])
    rest = iter(flat)
    return [
        entry.with_entry("stages", entry.value["stages"].replace([next(rest) for _ in body]))
        if is_repeat(entry) and body else entry if is_repeat(entry) else next(rest)
        for entry, body in zip(entries, bodies, strict=True)
    ]  # fmt: skip


def _body(entry: Node) -> list[Node]:
    """The stages of an entry of `stages`: itself, or those that it repeats."""
    if not is_repeat(entry):
        return [entry]
    listed = entry.value.get("stages")
    return _as_sections(listed.value) if listed is not None and isinstance(listed.value, list) else []


def _check_kind(stage: Node) -> None:
    """Raises ConfigError for a stage without a kind that there is: nobody could say which sections it has."""
    kinds, kind = list(stage_models()), stage.get("kind")
    if not stage.is_dict:
        raise stage.error("a stage is a kind or a mapping", found=describe(stage.value), fix="write e.g. `- sft`")
    if kind is None:
        missing = Node(None, stage.file, stage.line, join(stage.path, "kind"))
        raise missing.error("is required", fix=f"take one of {', '.join(kinds)}")
    if kind not in kinds:
        near = nearest(str(kind), kinds)
        raise stage.value["kind"].error(
            f"must be one of {', '.join(kinds)}", found=describe(kind), fix=f"did you mean {near}?" if near else None
        )


def _as_sections(stages: list[Node]) -> list[Node]:
    """A bare word is a stage of that kind."""
    return [stage.replace({"kind": stage}) if isinstance(stage.value, str) else stage for stage in stages]


def _default_run(root: Node, kind: str | None) -> str:
    if root.file is not None and root.file != "override":
        return f"runs/{Path(root.file).stem}"
    if kind is None:
        raise ConfigError("is required", field="run", fix="name a folder, e.g. run: runs/first")
    return f"runs/{kind}"


def _listed_stages(root: Node) -> list[Node]:
    stages = root.value.get("stages")
    if stages is None or stages.value in (None, []):
        raise ConfigError(
            "the plan has no stages",
            file=root.file,
            field="stages",
            fix="write e.g. `stages: [sft, prepare, dpo]`, or run a single stage: `whet sft PLAN.yaml`",
        )
    if not isinstance(stages.value, list):
        raise stages.error("must be a list", found=describe(stages.value), fix="write e.g. `stages: [sft, dpo]`")
    return _as_sections(stages.value)


def _only_stage(root: Node, kind: str) -> Node:
    """All keys at the top that are not the plan's belong to the one stage of a verb."""
    if "stages" in root.value:
        raise root.value["stages"].error(
            f"`whet {kind}` runs a single stage, and this plan lists stages", fix="use `whet run PLAN.yaml`"
        )
    written = root.value.get("kind")
    if written is not None and written.value != kind:
        raise written.error(f"this plan is not for `whet {kind}`", found=describe(written.value))
    own = {key: entry for key, entry in root.value.items() if key not in ("run", "model", "launch", "seed")}
    return root.replace({**own, "kind": Node(kind, root.file, None, "kind")})


def _share(stages: list[Node], name: str, section: Node) -> list[Node]:
    """Lay a section from the top under every stage that has it; one that nobody uses is refused."""
    having = [index for index, stage in enumerate(stages) if name in _fields(stage)]
    using = [index for index in having if _accepts(stages[index], name, section)]
    if not using and section.is_dict and section.get("type") is None:
        using = [index for index in having if _shares_a_key(stages[index], name, section)]
    if not using:
        raise section.error("no stage of this plan uses it", fix="move it into its stage, or delete it")
    shared = list(stages)
    for index in using:
        own = stages[index].value.get(name)
        shared[index] = stages[index].with_entry(name, section if own is None else _merge(section, own))
    return shared


def _accepts(stage: Node, name: str, section: Node) -> bool:
    """Whether a section may be laid under a stage: where a section has types, they must agree."""
    by_type = _types(stage, name)
    if not by_type or not section.is_dict:
        return True
    own = stage.value[name].get("type") if name in stage.value else None
    wanted = section.get("type") or own or _default_type(stage, name)
    return wanted in by_type and own in (None, wanted) and section.value.keys() <= by_type[wanted].model_fields.keys()


def _shares_a_key(stage: Node, name: str, section: Node) -> bool:
    """Whether a misspelt section was meant for this stage: the strict model then says what is wrong with it."""
    default = _types(stage, name)[str(_default_type(stage, name))]
    return bool(section.value.keys() & default.model_fields.keys())


def _merge(below: Node, own: Node) -> Node:
    """`own` over `below`, key by key. Sections of different `type` do not mix."""
    if not (below.is_dict and own.is_dict):
        return own
    if None not in (below.get("type"), own.get("type")) and below.get("type") != own.get("type"):
        return own
    merged = dict(below.value)
    for key, entry in own.value.items():
        merged[key] = _merge(merged[key], entry) if key in merged else entry
    return own.replace(merged)


def _with_type(stage: Node) -> Node:
    """An objective, a value function or a judge without a type has the type its stage has by default."""
    for name in TYPED:
        section = stage.value.get(name) if stage.is_dict else None
        default = _default_type(stage, name) if section is not None and section.is_dict else None
        if section is not None and default is not None and "type" not in section.value:
            stage = stage.with_entry(name, section.with_entry("type", section.replace(default)))
    return stage


def _excluding(stages: list[Node]) -> list[Node]:
    """A stage of prompts that does not say what it leaves out leaves out what every task of the plan asks."""
    lists = [stage.value.get(name) for stage in stages if stage.is_dict for name in TASK_LISTS]
    tasks = [task for found in lists if found is not None and isinstance(found.value, list) for task in found.value]
    data = [task.value["data"] for task in tasks if task.is_dict and "data" in task.value]
    different = {repr(plain(one)): one for one in reversed(data)}
    outside = [one for one in reversed(different.values()) if not any(file.startswith("@") for file in _files(one))]
    return [
        stage.with_entry("exclude", stage.replace(outside))
        if stage.get("kind") == "prompts" and stage.get("exclude") is None else stage
        for stage in stages
    ]  # fmt: skip


def _files(data: Node) -> list[str]:
    """The files of a data section as they are written."""
    files = data.value.get("files") if data.is_dict else None
    listed = files.value if files is not None and isinstance(files.value, list) else [files] if files else []
    return [str(entry.get("path") if entry.is_dict else entry.value) for entry in listed]


def _checked_seed(seed: Node) -> Node:
    if isinstance(seed.value, bool) or not isinstance(seed.value, int):
        raise seed.error("must be a whole number", found=describe(seed.value))
    if not 0 <= seed.value <= MOST_SEED:
        raise seed.error(f"must be from 0 to {MOST_SEED}", found=describe(seed.value))
    return seed


def _seeded(stage: Node, seed: Node) -> Node:
    for name in SEEDED:
        if name in _fields(stage):
            stage = stage.with_entry(name, _with_seed(stage.value.get(name, seed.replace({})), seed))
    for name in TASK_LISTS:
        tasks = stage.value.get(name) if stage.is_dict else None
        if tasks is not None and isinstance(tasks.value, list):
            stage = stage.with_entry(name, tasks.replace([_seeded_task(task, seed) for task in tasks.value]))
    return stage


def _seeded_task(task: Node, seed: Node) -> Node:
    if not task.is_dict:
        return task
    task = task.with_entry("data", _with_seed(task.value.get("data", seed.replace({})), seed))
    return task if task.get("type") == "perplexity" else _with_seed(task, seed)


def _with_seed(section: Node, seed: Node) -> Node:
    return section if not section.is_dict or "seed" in section.value else section.with_entry("seed", seed)


def _model(stage: Node) -> type[Section] | None:
    kind = stage.get("kind")
    return stage_models().get(kind) if isinstance(kind, str) else None


def _fields(stage: Node) -> frozenset[str]:
    model = _model(stage)
    return frozenset(model.model_fields) if model else frozenset()


def _types(stage: Node, name: str) -> dict[str, type[Section]]:
    """The typed sections a stage's field allows, by type; empty for a field without types."""
    model = _model(stage)
    if model is None or name not in TYPED or name not in model.model_fields:
        return {}
    return {
        str(option.model_fields["type"].default): option for option in sections(model.model_fields[name].annotation)
    }


def _default_type(stage: Node, name: str) -> str | None:
    model = _model(stage)
    if model is None or name not in model.model_fields:
        return None
    default = model.model_fields[name].get_default(call_default_factory=True)
    return str(default.type)
