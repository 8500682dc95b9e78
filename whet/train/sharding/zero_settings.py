"""The user's DeepSpeed JSON and the plan as one: "auto" becomes what the plan says, and a contradiction is refused.

What a loop of its own would read from the file (batch sizes, optimiser, schedule) the plan says here; such keys may
stand in the file as long as they say the same.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from whet.config.train import Train
from whet.errors import ConfigError

AUTO = "auto"
QUIET = 10**9
"""Steps between two lines of DeepSpeed's own."""


def read_settings(path: str) -> dict[str, Any]:
    """The file as it is. Raises ConfigError where it is not a JSON object that asks for ZeRO-2 or ZeRO-3."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError("no such file", field="launch.sharding.config", found=path, fix="give DeepSpeed's JSON file")
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError("not JSON", file=path, found=str(error), fix="mend it") from error
    if not isinstance(given, dict):
        raise ConfigError("not a JSON object", file=path, found=type(given).__name__, fix="give DeepSpeed's settings")
    zero = given.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if not isinstance(zero, dict) or stage not in (2, 3):
        raise ConfigError(
            "neither ZeRO-2 nor ZeRO-3", file=path, field="zero_optimization.stage", found=str(stage),
            fix="say 2 or 3; for whole weights on every rank leave launch.sharding out",
        )  # fmt: skip
    for part in ("offload_optimizer", "offload_param"):
        device = (zero.get(part) or {}).get("device", "none")
        if device not in ("none", "cpu"):
            raise ConfigError(
                "not supported", file=path, field=f"zero_optimization.{part}.device", found=str(device),
                fix="say cpu or none",
            )  # fmt: skip
    return given


def settings(
    given: Mapping[str, Any], path: str, train: Train, *, world: int, dtype: torch.dtype, width: int
) -> dict[str, Any]:
    """What DeepSpeed gets. `width` is the model's hidden size, from which "auto" sizes of buffers come, as in
    transformers. Raises ConfigError for a key that contradicts the plan, and for an "auto" that nobody can fill in."""
    made = copy.deepcopy(dict(given))
    plan = _Plan(path, train)
    plan.batch(made, world)
    plan.optimizer(made.pop("optimizer", None))
    plan.scheduler(made.pop("scheduler", None))
    made["gradient_clipping"] = plan.same(made, "gradient_clipping", train.max_grad_norm or 0.0, "train.max_grad_norm")
    for kind, wanted in (("bf16", dtype == torch.bfloat16), ("fp16", False)):
        section = made.setdefault(kind, {})
        section["enabled"] = plan.same(section, "enabled", wanted, "train.precision", inside=f"{kind}.")
    made["fp16"] = {"enabled": False}  # its loss scale may be "auto", and there is none
    for kind in ("amp", "torch_autocast"):
        plan.same(made.get(kind, {}), "enabled", False, "train.precision", inside=f"{kind}.")
    sizes = {
        "reduce_bucket_size": width * width,
        "stage3_prefetch_bucket_size": int(0.9 * width * width),
        "stage3_param_persistence_threshold": 10 * width,
        "stage3_gather_16bit_weights_on_model_save": False,
    }
    zero = made["zero_optimization"]
    zero |= {name: size for name, size in sizes.items() if zero.get(name) == AUTO}
    made |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    made.setdefault("steps_per_print", QUIET)
    for place in _autos(made):
        raise ConfigError(
            "nothing to fill in", file=path, field=place, found=AUTO, fix="give a value, or leave it out"
        )  # fmt: skip
    return made


class _Plan:
    """What the plan says, held against the file."""

    def __init__(self, path: str, train: Train) -> None:
        self._path, self._train = path, train

    def same(self, section: Mapping[str, Any], key: str, wanted: Any, said_by: str, *, inside: str = "") -> Any:
        """`wanted`. Raises ConfigError where the section says something else."""
        stated = section.get(key, AUTO)
        if stated != AUTO and stated != wanted:
            raise ConfigError(
                f"{said_by} says {json.dumps(wanted)}", file=self._path, field=f"{inside}{key}",
                found=json.dumps(stated), fix=f'say "auto", or change {said_by}',
            )  # fmt: skip
        return wanted

    def batch(self, made: dict[str, Any], world: int) -> None:
        """Records are packed by tokens, so DeepSpeed is told of passes of one; what the file says has to add up."""
        size = self._train.batch_size
        self.same(made, "train_batch_size", size, "train.batch_size")
        names = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
        stated = {name: made[name] for name in names if made.get(name, AUTO) != AUTO}
        product = world
        for value in stated.values():
            product *= int(value)
        if stated and (product != size if len(stated) == len(names) else size % product):
            raise ConfigError(
                f"train.batch_size says {size} records a step, over all ranks", file=self._path,
                field=" x ".join(stated), found=" x ".join(map(str, (*stated.values(), f"{world} ranks"))),
                fix='say "auto", or change train.batch_size',
            )  # fmt: skip
        made |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "train_batch_size": world}

    def optimizer(self, section: Mapping[str, Any] | None) -> None:
        """The plan's AdamW is handed over in its place."""
        if section is None:
            return
        if section.get("type") not in ("Adam", "AdamW"):
            raise ConfigError(
                "the optimiser is AdamW", file=self._path, field="optimizer.type",
                found=json.dumps(section.get("type")), fix="leave the section out",
            )  # fmt: skip
        known = {
            "lr": (self._train.learning_rate, "train.learning_rate"),
            "betas": (list(self._train.betas), "train.betas"),
            "eps": (self._train.epsilon, "train.epsilon"),
            "weight_decay": (self._train.weight_decay, "train.weight_decay"),
            "adam_w_mode": (True, "train.optimizer"),
            "torch_adam": (True, "train.optimizer"),
        }
        for name in section.get("params", {}):
            if name not in known:
                raise ConfigError(
                    "not a setting of AdamW here", file=self._path, field=f"optimizer.params.{name}",
                    found=json.dumps(section["params"][name]), fix="leave it out",
                )  # fmt: skip
            self.same(section["params"], name, *known[name], inside="optimizer.params.")

    def scheduler(self, section: Mapping[str, Any] | None) -> None:
        """The plan's schedule stands."""
        for name, value in (section or {}).get("params", {}).items():
            if value != AUTO:
                raise ConfigError(
                    "train.schedule and train.warmup_ratio say it", file=self._path, field=f"scheduler.params.{name}",
                    found=json.dumps(value), fix='say "auto", or leave the section out',
                )  # fmt: skip


def _autos(value: Any, place: str = "") -> Iterator[str]:
    """Where "auto" still stands."""
    if value == AUTO:
        yield place
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _autos(inner, f"{place}.{name}" if place else name)
