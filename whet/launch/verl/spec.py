"""reward.json: the reward as a process beside verl has to know it, and the model that verl must serve for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import whet
from whet.config.engine import Http as HttpEngine
from whet.config.engine import Native, Ray, Vllm
from whet.config.model import Model
from whet.config.rewards import Composite, Judged, PlainReward, Reward, RewardModel
from whet.config.rules import Length, Overlong, Repetition
from whet.config.verl import Verl
from whet.launch.verl.keys import Settings, Value
from whet.launch.verl.refuse import refused
from whet.schema.artifacts import ModelRef

JUDGE_ROOM = 2048
"""Tokens that a judge's own words may have beside the prompt and the response."""
TEMPLATE_ROOM = 64
"""Tokens that a reward model's template adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model that verl serves for the reward: a sequence classifier, or a judge."""

    path: str
    reply_tokens: int
    """The longest reply of a judge; 1 for a classifier."""
    room: int
    """Tokens beside the prompt and the response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What reward.json says."""

    reward: Reward
    model: Model
    """The plan's model section, for templates of judges and reward models."""
    served: str | None
    """Checkpoint behind verl's reward router."""
    engine: str
    """What serves it: vllm or sglang."""
    max_new_tokens: int

    @classmethod
    def read(cls, path: Path) -> Spec:
        raw = json.loads(path.read_text(encoding="utf-8"))["spec"]
        return cls(
            reward=_REWARD.validate_python(raw["reward"]), model=Model.model_validate(raw["model"]),
            served=raw["served"], engine=raw["engine"], max_new_tokens=raw["max_new_tokens"],
        )  # fmt: skip

    def to_json(self, options: Verl) -> dict[str, Any]:
        """With what reward.py itself reads: how whet is started, and what becomes of missing scores."""
        return {
            "python": sys.executable,
            "path": [str(Path(whet.__file__).parent.parent)],
            "cwd": str(Path.cwd()),
            "deadline": options.reward_deadline,
            "unscored": options.unscored,
            "max_unscored": options.max_unscored,
            "parts": part_names(self.reward),
            "spec": {
                "reward": self.reward.model_dump(mode="json"),
                "model": self.model.model_dump(mode="json"),
                "served": self.served,
                "engine": self.engine,
                "max_new_tokens": self.max_new_tokens,
            },
        }


_REWARD: TypeAdapter[Reward] = TypeAdapter(Reward)


def parts_of(reward: Reward) -> tuple[PlainReward, ...]:
    """The rewards a reward is made of: itself, where it is not composite."""
    return tuple(part.reward for part in reward.parts) if isinstance(reward, Composite) else (reward,)


def without_models(reward: Reward) -> Reward | None:
    """What of a reward needs no model: what references can be checked with. None where that is nothing."""
    if not isinstance(reward, Composite):
        return None if isinstance(reward, RewardModel | Judged) else reward
    parts = tuple(part for part in reward.parts if not isinstance(part.reward, RewardModel | Judged))
    return reward.model_copy(update={"parts": parts}) if parts else None


def part_names(reward: Reward) -> list[str]:
    """Names of the parts, each a metric of verl's."""
    return [part.name for part in reward.parts] if isinstance(reward, Composite) else []


def served_model(
    reward: Reward, find: Callable[[str], ModelRef], *, field: str = "reward"
) -> tuple[Reward, Served | None]:
    """The reward with every model named by its checkpoint, and the one that verl has to serve, if any.

    `find` turns a plan's name into a model. Raises ConfigError for rewards that verl cannot be asked for.
    """
    _check(reward, field)
    wanted: dict[str, Served] = {}
    named = [_named(part, find, wanted, field) for part in parts_of(reward)]
    if len(wanted) > 1:
        raise refused(
            field, "verl serves one reward model or judge, and these are several", found=", ".join(wanted),
            fix="take one, or ask a judge at a server of yours: engine={type: http, ...}",
        )  # fmt: skip
    found = next(iter(wanted.values()), None)
    if not isinstance(reward, Composite):
        return named[0], found
    parts = tuple(
        part.model_copy(update={"reward": changed}) for part, changed in zip(reward.parts, named, strict=True)
    )
    return reward.model_copy(update={"parts": parts}), found


def _check(reward: Reward, field: str) -> None:
    if isinstance(reward, Composite) and any(part.normalise != "none" for part in reward.parts):
        raise refused(f"{field}.parts.normalise", "verl's reward processes do not share what was scored before")
    for part in parts_of(reward):
        match part:
            case Length(unit="tokens") | Repetition(unit="tokens"):
                raise refused(
                    f"{field}.unit", "verl's reward function is shown text, not tokens", found="tokens",
                    fix="count words or characters",
                )  # fmt: skip
            case Overlong():
                raise refused(
                    f"{field}.type", "verl's reward function is shown text, not tokens", found="overlong",
                    fix="take {type: length, unit: words, budget: ...}, or leave it out",
                )  # fmt: skip
            case RewardModel(normalise="running"):
                raise refused(f"{field}.normalise", "verl's reward processes do not share what was scored before")
            case Judged() if part.needs_probabilities:
                raise refused(f"{field}.scores", "verl's server is asked for words only", found="expectation")


def _named(part: PlainReward, find: Callable[[str], ModelRef], wanted: dict[str, Served], field: str) -> PlainReward:
    match part:
        case RewardModel(path=path, adapter=adapter):
            ref = find(path)
            checkpoint = _whole(ref if adapter is None else ModelRef(path=ref.path, adapter=adapter), f"{field}.path")
            wanted[checkpoint] = Served(path=checkpoint, reply_tokens=1, room=TEMPLATE_ROOM)
            return part.model_copy(update={"path": checkpoint, "adapter": None})
        case Judged(engine=HttpEngine()):
            return part.model_copy(update={"model": _whole(find(part.model), f"{field}.model")})
        case Judged(engine=Vllm(url=str(url))):
            raise refused(
                f"{field}.engine.url", "is a server of yours", found=url,
                fix="name it as {type: http, urls: [...], model: ...}",
            )  # fmt: skip
        case Judged():
            assert isinstance(part.engine, Native | Vllm | Ray | None), "the others are above"
            checkpoint = _whole(find(part.model), f"{field}.model")
            wanted[checkpoint] = Served(path=checkpoint, reply_tokens=part.max_new_tokens, room=JUDGE_ROOM)
            return part.model_copy(update={"model": checkpoint, "engine": None})
        case _:
            return part


def _whole(ref: ModelRef, field: str) -> str:
    """A checkpoint that an engine can load by itself."""
    if ref.adapter is not None:
        raise refused(
            field, "is an adapter, and verl serves whole checkpoints", found=ref.adapter,
            fix="put a merge stage behind the one that trained it, and name that",
        )  # fmt: skip
    path = Path(ref.path)
    return str(path.resolve()) if path.exists() else ref.path


def check_served(served: Served | None, options: Verl, settings: Settings) -> None:
    """Dynamic sampling wants rewards before a round is full; a model that shares the training's GPUs answers after."""
    if served is not None and settings.get("algorithm.filter_groups.enable") and not options.reward_nnodes:
        raise refused(
            "objective.filter_groups", "verl replaces prompts only where rewards come while it generates, and a model "
            "that shares the GPUs gives them afterwards", found="true", fix="set verl.reward_nnodes=1",
        )  # fmt: skip


def reward_settings(folder: str, served: Served | None, options: Verl, *, longest: int) -> dict[str, Value]:
    """verl's keys of the reward. `longest` is the longest prompt with its response in tokens."""
    settings: dict[str, Value] = {
        "reward.custom_reward_function.path": f"{folder}/reward.py",
        "reward.custom_reward_function.name": "compute_score",
        "reward.reward_manager.name": "naive",
        "reward.num_workers": options.reward_workers,
        "reward.reward_model.enable": served is not None,
        # Without a model nothing is started, but the key has no default and may not stay empty.
        "reward.reward_model.rollout.name": options.engine,
    }
    if served is None:
        return settings
    own = options.reward_nnodes > 0
    return settings | {
        "reward.reward_model.model_path": served.path,
        "reward.reward_model.enable_resource_pool": own,
        "reward.reward_model.nnodes": options.reward_nnodes,
        "reward.reward_model.n_gpus_per_node": options.reward_gpus_per_node if own else options.n_gpus_per_node,
        "reward.reward_model.rollout.tensor_model_parallel_size": options.reward_tensor_parallel,
        "reward.reward_model.rollout.gpu_memory_utilization": options.reward_gpu_memory_utilization,
        "reward.reward_model.rollout.prompt_length": longest + served.room,
        "reward.reward_model.rollout.response_length": served.reply_tokens,
    }
