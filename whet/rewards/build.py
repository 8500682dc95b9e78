"""A reward section -> the reward.

    reward = build_reward(Numeric())
    reward = build_reward(config, setting=RewardSetting(models=context.models, max_new_tokens=256))

What a kind of reward needs beyond its section is in the setting; most need nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

from whet.config.judge import PointwiseForm
from whet.config.model import Vision
from whet.config.rewards import Composite, Custom, Http, Judged, PlainReward, RewardModel, RewardPart
from whet.config.rewards import Reward as RewardConfig
from whet.config.rules import (
    Contains,
    Exact,
    JsonSchema,
    Length,
    Math,
    Numeric,
    Overlong,
    Regex,
    Repetition,
    Tags,
    Verdict,
)
from whet.data.render import Renderer
from whet.errors import ConfigError
from whet.rewards import rules, shape
from whet.rewards.composite import CompositeReward, Part
from whet.rewards.custom import FunctionReward
from whet.rewards.format import JsonReward, regex_form, tagged
from whet.rewards.http import HttpReward
from whet.rewards.judge import build_judge
from whet.rewards.judged import JudgedReward
from whet.rewards.math import MathReward
from whet.rewards.normalise import NormalisedReward, Running
from whet.rewards.reward import Reward
from whet.rewards.verdict import verdict_rule
from whet.rollout.engine import Engine
from whet.runs.given import ref_of
from whet.schema.artifacts import ModelRef


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSetting:
    """What some rewards need of the stage that asks."""

    models: Mapping[str, ModelRef] = field(default_factory=dict)
    """Reward models by the name of the stage that made them."""
    max_new_tokens: int | None = None
    """The longest answer an engine gives."""
    judge: Callable[[PointwiseForm], tuple[Engine, Renderer]] | None = None
    """The engine and the renderer of a judge; None where the stage has no judges."""
    vision: Vision = field(default_factory=Vision)
    """Limits of pictures that the reward models of `models` were trained with."""
    served: Callable[[RewardModel], Reward] | None = None
    """Reward models that answer elsewhere; None where they are loaded into this process."""


def build_reward(config: RewardConfig, *, setting: RewardSetting | None = None) -> Reward:
    """Raises ConfigError or ModelError where something that the reward needs is not there."""
    setting = setting or RewardSetting()
    if isinstance(config, Composite):
        return CompositeReward(parts=tuple(_part(part, setting) for part in config.parts), otherwise=config.otherwise)
    return _plain(config, setting)


def _part(config: RewardPart, setting: RewardSetting) -> Part:
    running = Running() if config.normalise == "running" else None
    return Part(config=config, reward=_plain(config.reward, setting), running=running)


def _plain(config: PlainReward, setting: RewardSetting) -> Reward:
    match config:
        case Exact():
            return rules.exact(config)
        case Contains():
            return rules.contains(config)
        case Numeric():
            return rules.numeric(config)
        case Math():
            return MathReward(config)
        case Verdict():
            return verdict_rule()
        case Regex():
            return regex_form(config)
        case Tags():
            return tagged(config)
        case JsonSchema():
            return JsonReward(config)
        case Length():
            return shape.length(config)
        case Overlong():
            return shape.overlong(config, max_new_tokens=setting.max_new_tokens)
        case Repetition():
            return shape.repetition(config)
        case Custom():
            return FunctionReward(config)
        case RewardModel() if setting.served is not None:
            return setting.served(config)
        case RewardModel():
            from whet.rewards.model import ModelReward  # torch

            ref = ref_of(config.path, setting.models)
            ref = ref if config.adapter is None else replace(ref, adapter=config.adapter)
            model = ModelReward(config, ref, setting.vision if config.path in setting.models else None)
            return NormalisedReward(reward=model) if config.normalise == "running" else model
        case Judged():
            return _judged(config, setting)
        case Http():
            return HttpReward(config)
        case _:
            assert_never(config)


def _judged(config: Judged, setting: RewardSetting) -> JudgedReward:
    if setting.judge is None:
        raise ConfigError("has no model to judge with here", field="reward.type", found="judge")
    engine, renderer = setting.judge(config)
    return JudgedReward(judge=build_judge(config, renderer, seed=config.seed), engine=engine)
