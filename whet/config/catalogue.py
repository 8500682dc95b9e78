"""Every key a plan may have, read off the models: for `whet explain` and for "did you mean".

A key is written as it stands in a plan: `model.lora.rank`, `train.epochs`, `tasks.checker.type`. The same key may stand
in several kinds of stage with different defaults, or in some types of a section only; then it has several entries.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from pydantic.fields import FieldInfo

from whet.config.base import Section
from whet.config.plan import Plan
from whet.config.repeat import Repeat
from whet.config.stage import MergeStage, PolicyStage, Stage

# What the same thing is called in tools people come from; only ever used to suggest a key.
ELSEWHERE = {
    "lr": "train.learning_rate",
    "model_name_or_path": "model.path",
    "output_dir": "run",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "per_device_train_batch_size": "train.batch_size",
    "train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.batch_size",
    "micro_batch_size": "train.micro_batch_tokens",
    "packing": "train.micro_batch_tokens",
    "neftune_noise_alpha": "train.neftune_alpha",
    "ref_model": "reference.model",
    "precompute_ref_log_probs": "reference.cache",
    "lr_scheduler_type": "train.schedule",
    "loss_type": "objective.type",
    "cutoff_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "dataset": "data.files",
    "train_file": "data.files",
    "eval_file": "data.eval_files",
    "lora_rank": "model.lora.rank",
    "lora_r": "model.lora.rank",
    "lora_alpha": "model.lora.alpha",
    "adapter_name_or_path": "model.adapter",
    "save_interval": "train.save_every",
    "save_steps": "train.save_every",
    "save_freq": "train.save_every",
    "eval_steps": "train.eval_every",
    "test_freq": "train.eval_every",
    "save_dir": "run",
    "sft_data_path": "data.files",
    "reward_data_path": "data.files",
    "ppo_data_path": "data.files",
    "sft_lr": "train.learning_rate",
    "reward_lr": "train.learning_rate",
    "ppo_lr_policy": "train.learning_rate",
    "actor_lr": "train.learning_rate",
    "freeze_reward_backbone": "head.freeze_backbone",
    "reward_model_name_or_path": "reward.path",
    "max_prompt_length": "data.max_length",
    "max_response_length": "rollout.max_new_tokens",
    "max_completion_length": "rollout.max_new_tokens",
    "gen_max_new": "rollout.max_new_tokens",
    "rollout_n": "rollout.group_size",
    "num_generations": "rollout.group_size",
    "ppo_epochs": "objective.epochs",
    "ppo_mini_batch_size": "objective.minibatches",
    "mini_batch_size": "objective.minibatches",
    "init_kl_coef": "objective.kl_weight",
    "kl_loss_coef": "objective.kl_weight",
    "kl_coef": "objective.kl_weight",
    "kl_loss_type": "objective.kl_estimator",
    "target_kl": "objective.adaptive_kl.target",
    "vf_coef": "objective.value_weight",
    "cliprange": "objective.clip_high",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One key at one place of the plan."""

    path: str
    info: FieldInfo
    kind: str
    """Kind of stage it stands in; empty for keys of the plan itself."""
    tag: str
    """The `type` of the section it belongs to; empty where the section has no types."""

    @property
    def default(self) -> Any:
        return self.info.get_default(call_default_factory=True)


def stage_models() -> dict[str, type[Section]]:
    """The model of each kind of stage, in the order of a pipeline's definition."""
    return {model.model_fields["kind"].default: model for model in sections(Stage)}


def sections(annotation: Any) -> tuple[type[Section], ...]:
    """The section models that stand anywhere in a type: `Lora | None`, `tuple[Task, ...]`, a tagged union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    found = [model for part in get_args(annotation) for model in sections(part)]
    return tuple(dict.fromkeys(found))


@cache
def entries() -> tuple[Entry, ...]:
    """All keys, those of the plan first, then kind by kind."""
    found = [entry for name in ("run", "model", "launch") for entry in _below(Plan, name, "", "", "")]
    for kind, model in stage_models().items():
        for name in model.model_fields:
            if name != "kind":
                found.extend(_below(model, name, "", kind, ""))
    for name in Repeat.model_fields:
        found.extend(_below(Repeat, name, "", "repeat", ""))
    return tuple(found)


def entries_of(model: type[Section], prefix: str) -> tuple[Entry, ...]:
    """The keys of a section that is no part of a plan."""
    return tuple(entry for name in model.model_fields for entry in _below(model, name, prefix, "", ""))


def model_kinds() -> frozenset[str]:
    """Kinds of stage that leave a language model."""
    makers = (*sections(PolicyStage), *sections(MergeStage))
    return frozenset(str(model.model_fields["kind"].default) for model in makers)


def section_keys() -> frozenset[str]:
    """Keys of stages that may also stand at the top of a plan, as defaults for every stage that has them."""
    return frozenset(name for model in stage_models().values() for name in model.model_fields) - {
        "kind",
        "name",
        "start",
    }


def top_keys() -> frozenset[str]:
    """Every key that may stand at the top of a plan file."""
    return section_keys() | {"run", "model", "launch", "seed", "stages", "loops"}


def paths() -> tuple[str, ...]:
    return tuple(dict.fromkeys(["run", "seed", "stages", "loops", *(entry.path for entry in entries())]))


def suggest(path: str) -> str | None:
    """The key most likely meant by an unknown one.

    >>> suggest("lora.rank"), suggest("train.epoch"), suggest("lr")
    ('model.lora.rank', 'train.epochs', 'train.learning_rate')
    """
    known = paths()
    longer = [key for key in known if key.endswith("." + path)]
    if longer:
        return min(longer, key=lambda key: (key.count("."), known.index(key)))
    parent, _, last = path.rpartition(".")
    if last in ELSEWHERE:
        return ELSEWHERE[last]
    for candidates in ([key for key in known if key.rpartition(".")[0] == parent], known):
        by_last = {key.rpartition(".")[2]: key for key in reversed(candidates)}
        match = difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)
        if match:
            return by_last[match[0]]
    return next(iter(difflib.get_close_matches(path, known, n=1, cutoff=0.6)), None)


def _below(model: type[Section], name: str, prefix: str, kind: str, tag: str) -> Iterator[Entry]:
    info = model.model_fields[name]
    path = f"{prefix}.{name}" if prefix else name
    yield Entry(path, info, kind, tag)
    for inner in sections(info.annotation):
        for field in inner.model_fields:
            yield from _below(inner, field, path, kind, _tag(inner) or tag)


def _tag(model: type[Section]) -> str:
    """The `type` a model stands for, where it has one of its own."""
    field = model.model_fields.get("type")
    return str(field.default) if field is not None and len(get_args(field.annotation)) == 1 else ""
