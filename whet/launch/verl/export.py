"""A plan's stage -> a folder that verl runs.

    overrides.txt     verl's keys, one a line: what `run.sh` hands to verl
    run.sh            starts it
    train.parquet     the prompts; val.parquet, where any are held out
    reward.py         verl's reward function; reward.json, what it asks whet for
    tokenizer/        where the plan has a chat template of its own
    README.md         what is what, and what differs from `whet run`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from whet.config.engine import Native
from whet.config.plan import Plan
from whet.config.rewards import Reward
from whet.config.stage import OnlinePolicyStage, PpoStage
from whet.config.value import ModelValue
from whet.config.verl import Verl
from whet.data.places import pictures_in
from whet.data.render import Renderer, under_system
from whet.errors import ConfigError, DataError
from whet.launch.verl.arithmetic import check
from whet.launch.verl.keys import Settings, Value, lines
from whet.launch.verl.models import context_of, exported_stage, named, whole_start
from whet.launch.verl.readme import readme
from whet.launch.verl.refuse import refused
from whet.launch.verl.rows import row_of, write_rows
from whet.launch.verl.settings import Ground, stage_batch, stage_settings
from whet.launch.verl.spec import Spec, check_served, reward_settings, served_model, without_models
from whet.rewards.build import RewardSetting, build_reward
from whet.rewards.gold import gold_check
from whet.runs.files import write_json, write_text, writing
from whet.schema.artifacts import ModelRef
from whet.schema.records import Prompt
from whet.stages.build import build_model
from whet.stages.context import Context
from whet.stages.prompts import PromptSet, read_prompts
from whet.stages.rendering import renderer_of

OVERRIDES, RUN, REWARD, FUNCTION = "overrides.txt", "run.sh", "reward.json", "reward.py"
GOLD = "its reference does not get full marks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What is written."""

    settings: Settings
    spec: Spec
    options: Verl
    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt]
    system: str | None
    pictures: bool
    """Whether the rows have pictures."""
    tokenizer: Renderer | None
    """Whose tokenizer goes along; None where the checkpoint's own does."""
    title: str
    """What was exported, for the README."""
    notes: Sequence[str]
    """What differs from `whet run`."""


def export_plan(plan: Plan, options: Verl, out: Path, *, stage: str | None = None) -> None:
    """Write the folder. Raises UserError for whatever verl would do in another way, before anything is written."""
    number, exported = exported_stage(plan, stage)
    context = context_of(plan, number)
    build_model(plan.model)
    write(_of_stage(plan, exported, context, options, out.resolve()), out.resolve())


def _of_stage(plan: Plan, stage: OnlinePolicyStage, context: Context, options: Verl, out: Path) -> Exported:
    start = whole_start(context)
    _check_reference(stage, context, start)
    reward, served = served_model(stage.reward, lambda name: named(context, name))
    renderer = renderer_of(ModelRef(path=start), plan.model, system=stage.data.system)
    asked = _rewarded(read_prompts(stage.data, context, renderer, hold_out=True), reward, stage)
    everything = (*asked.prompts, *asked.held_out)
    check_prompts(everything, renderer, stage.data.system)
    check_end(start, renderer)
    pictures = any(pictures_in(prompt.messages) for prompt in everything)
    if pictures and (plan.model.vision.min_pixels or plan.model.vision.max_pixels or plan.model.chat_template):
        raise refused(
            "model.vision", "limits of pictures, or a chat template of your own for them, cannot be handed to verl",
            fix="put them into the checkpoint's preprocessor_config.json and chat_template.jinja",
        )  # fmt: skip
    own_template = plan.model.chat_template is not None
    ground = Ground(
        model=plan.model, options=options, start=start, tokenizer=str(out / "tokenizer") if own_template else None,
        folder=str(out), name=f"{Path(plan.run).name}-{stage.name}", num_prompts=len(asked.prompts),
        held_out=bool(asked.held_out), patch_size=_patch_size(start) if pictures else None,
        critic=_critic(stage, context, start),
    )  # fmt: skip
    batch = stage_batch(stage)
    check(batch, options, num_prompts=len(asked.prompts))
    settings: dict[str, Value] = stage_settings(stage, ground, batch)
    check_served(served, options, settings)
    longest = batch.prompt_tokens + batch.response_tokens
    settings |= reward_settings(str(out), served, options, longest=longest)
    spec = Spec(
        reward=reward, model=plan.model, served=None if served is None else served.path, engine=options.engine,
        max_new_tokens=stage.rollout.max_new_tokens,
    )  # fmt: skip
    return Exported(
        settings=settings, spec=spec, options=options, prompts=asked.prompts, held_out=asked.held_out,
        system=stage.data.system, pictures=pictures, tokenizer=renderer if own_template else None,
        title=f"stage `{stage.name}` ({stage.kind}, objective {stage.objective.type}) of run {plan.run}",
        notes=_notes(stage, len(asked.prompts), batch.prompts),
    )  # fmt: skip


def write(exported: Exported, out: Path) -> None:
    """Write the folder; files of an earlier export are replaced, checkpoints stay. Raises ConfigError where `out` holds
    something else."""
    overrides = lines(exported.settings)
    if out.exists() and any(out.iterdir()) and not (out / OVERRIDES).exists():
        raise ConfigError("holds something else than an export", field="--out", found=str(out), fix="take a new folder")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write_rows(
        out / "train.parquet", exported.prompts, split="train", system=exported.system, pictures=exported.pictures
    )
    if exported.held_out:
        write_rows(
            out / "val.parquet", exported.held_out, split="val", system=exported.system, pictures=exported.pictures
        )
    if exported.tokenizer is not None:
        exported.tokenizer.template.tokenizer.save_pretrained(out / "tokenizer")
    write_json(out / REWARD, exported.spec.to_json(exported.options))
    write_text(out / FUNCTION, _shipped("reward_function.py"))
    write_text(out / RUN, _shipped("run.sh"))
    (out / RUN).chmod(0o755)
    write_text(out / OVERRIDES, "\n".join(overrides) + "\n")
    write_text(
        out / "README.md",
        readme(
            exported.settings, exported.options, title=exported.title, notes=exported.notes, folder=str(out),
            served=exported.spec.served, num_train=len(exported.prompts), num_val=len(exported.held_out),
        ),
    )  # fmt: skip


def _shipped(name: str) -> str:
    return resources.files("whet.launch.verl").joinpath(name).read_text(encoding="utf-8")


def _check_reference(stage: OnlinePolicyStage, context: Context, start: str) -> None:
    if not stage.objective.needs_reference:
        return
    reference = named(context, stage.reference.model)
    path = str(Path(reference.path).resolve()) if Path(reference.path).exists() else reference.path
    if path != start or reference.adapter is not None:
        raise refused(
            "reference.model", "verl's reference is the checkpoint that training starts from",
            found=stage.reference.model, fix="set it to start, or objective.kl_weight to 0",
        )  # fmt: skip


def _critic(stage: OnlinePolicyStage, context: Context, start: str) -> str | None:
    if not isinstance(stage, PpoStage) or not isinstance(stage.value, ModelValue):
        return start if isinstance(stage, PpoStage) else None
    found = named(context, stage.value.model)
    if found.adapter is not None:
        raise refused(
            "value.model", "is an adapter, and verl's critic starts from a whole checkpoint", found=found.adapter,
            fix="put a merge stage behind the one that trained it, and name that",
        )  # fmt: skip
    return str(Path(found.path).resolve()) if Path(found.path).exists() else found.path


def _rewarded(asked: PromptSet, reward: Reward, stage: OnlinePolicyStage) -> PromptSet:
    """The prompts whose references the reward gives full marks, as a stage of whet's own takes them."""
    print(f"{stage.name}: {asked.ledger.describe()}")
    rules = without_models(reward)
    if rules is None:
        return asked
    built = build_reward(rules, setting=RewardSetting(max_new_tokens=stage.rollout.max_new_tokens))
    report = gold_check(built, (*asked.prompts, *asked.held_out))
    if (error := report.error()) is not None and stage.data.on_bad_row == "error":
        raise error
    print(f"{stage.name}: {report.describe()}")
    return asked.without({failure.origin for failure in report.failures}, GOLD)


def check_prompts(prompts: Sequence[Prompt], renderer: Renderer, system: str | None) -> None:
    """verl renders prompts by the template as well: it must come to the very ids that whet would give an engine.

    Pictures are left out: their placeholders are the processor's business.
    """
    tokenizer = renderer.template.tokenizer
    for prompt in prompts:
        if pictures_in(prompt.messages):
            continue
        row = row_of(prompt, 0, split="train", system=system)
        theirs = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=True)
        ids = theirs["input_ids"] if hasattr(theirs, "keys") else theirs
        if tuple(ids) != renderer.prompt(prompt.messages, origin=prompt.origin):
            raise DataError(
                "the chat template gives verl other tokens than whet", file=prompt.origin.file, line=prompt.origin.line,
                field="messages", found="/".join(m.role for m in under_system(prompt.messages, system)),
                fix="write the turns as the template wants them (some take no system message)",
            )  # fmt: skip


def check_end(path: str, renderer: Renderer) -> None:
    """whet stops where the template ends a turn, verl's engines where the checkpoint says: both must mean the same id.

    A checkpoint that is no folder here is not looked into.
    """
    described = Path(path) / "generation_config.json"
    if not Path(path).is_dir():
        return
    configured = json.loads(described.read_text()).get("eos_token_id") if described.is_file() else None
    tokenizer = renderer.template.tokenizer
    known = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    if renderer.end_id not in known:
        raise ConfigError(
            "does not name the token that ends a turn of its template, and verl's engine would go on behind it",
            file=str(described), field="eos_token_id", found=", ".join(str(one) for one in known if one is not None),
            fix=f"add {renderer.end_id} ({tokenizer.decode([renderer.end_id])!r}) to it",
        )  # fmt: skip


def _patch_size(path: str) -> int:
    """Pixels a side of what a vision model takes for one place; 14 where the checkpoint does not say."""
    described = Path(path) / "preprocessor_config.json"
    return int(json.loads(described.read_text()).get("patch_size", 14)) if described.is_file() else 14


def _notes(stage: OnlinePolicyStage, num_prompts: int, round_prompts: int) -> list[str]:
    """What differs from `whet run` without changing the objective."""
    notes = []
    left = num_prompts % round_prompts
    if left:
        notes.append(
            f"verl leaves out the last, smaller round of an epoch: {left} of {num_prompts} prompts, others each epoch."
        )
    if isinstance(stage, PpoStage):
        notes.append(
            "The value function has an optimiser of its own, so `objective.value_weight` has nothing to weigh: AdamW's "
            "step does not depend on it. A checkpoint that is no reward model begins with random values, not with 0."
        )
    if stage.objective.needs_reference and stage.objective.kl_estimator == "k3":
        notes.append("verl cuts the k3 estimate of a token's KL off at 10; whet does not.")
    if stage.train.warmup_ratio or stage.train.warmup_steps or stage.train.schedule != "constant":
        notes.append("verl moves the learning rate once a round and warms up from 0; whet at every step, from above 0.")
    if stage.train.best_metric is not None or stage.train.keep != "best":
        notes.append("`train.best_metric` and `train.keep` have no counterpart: verl keeps the latest checkpoints.")
    if stage.watch:
        notes.append("`watch` is not exported: evaluate checkpoints with an evaluate stage.")
    if not isinstance(stage.rollout.engine, Native):
        notes.append("verl starts an engine of its own (`verl.engine`): the keys of `rollout.engine` are not used.")
    return notes
