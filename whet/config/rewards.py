"""Rewards of online training: what a completion is worth. A class is one kind of reward, chosen by `type`.

Rules stand in `rules`, everything else and the union of all here.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from whet.config.base import Section
from whet.config.judge import PointwiseForm
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
from whet.config.values import Device, Place, Seed, Timeout, Word


class Custom(Section):
    """A function of yours: f(prompt, completion, **columns) -> a number, or a mapping of parts; may be async.

    `prompt` is the text of the last user message; the columns are the row's own and `reference`, as far as the function
    takes them. It runs in a process of its own.
    """

    type: Literal["custom"] = "custom"
    path: Place
    """`module:function` or `FILE.py:function`."""
    timeout: Timeout = 10.0
    """Seconds for one call; a longer one is stopped and leaves the rollout without a score."""
    concurrency: int = Field(16, ge=1)
    """Calls of an async function that wait at the same time."""


class RewardModel(Section):
    """A reward model: a sequence-classification checkpoint with one label, by its own tokenizer and template."""

    type: Literal["model"] = "model"
    path: Place
    """Checkpoint directory, or the name of an earlier reward stage."""
    adapter: Place | None = None
    """Adapter directory, where the reward model is one."""
    batch_tokens: int | None = Field(None, ge=1)
    """Tokens per forward pass; null fits it to the model and the device."""
    normalise: Literal["none", "running"] = "none"
    """`running` takes off the mean and divides by the standard deviation of all scores so far."""
    device: Device = "auto"
    """Where it computes."""


class Judged(PointwiseForm):
    """A language model as judge (Yuan et al., 2401.10020): the mean of its readable votes."""

    type: Literal["judge"] = "judge"
    seed: Seed = 42
    """Seed of the judge's sampling."""


class Http(Section):
    """A server of yours: completions go there by POST, scores come back.

    It is sent {"prompts": [...], "messages": [...], "completions": [...], "columns": [...]} and answers
    {"scores": [...]}: for each completion a number, a mapping of parts, or null for no score.
    """

    type: Literal["http"] = "http"
    url: str = Field(pattern=r"^https?://")
    """Where to POST."""
    timeout: Timeout = 30.0
    """Seconds for one request."""
    retries: int = Field(3, ge=0)
    """Further attempts after no answer, 408, 429 or 5xx, each after a longer pause."""
    batch: int = Field(32, ge=1)
    """Completions per request."""
    concurrency: int = Field(4, ge=1)
    """Requests that wait at the same time."""
    token_env: str | None = None
    """Environment variable with a bearer token for the Authorization header."""


PlainReward = Annotated[
    Exact | Contains | Numeric | Math | Verdict | Regex | Tags | JsonSchema | Length | Overlong | Repetition | Custom
    | RewardModel | Judged | Http,
    Field(discriminator="type"),
]  # fmt: skip
"""Every reward that is not made of others."""


class RewardPart(Section):
    """One term of a composite reward."""

    name: Word
    """Name in logs."""
    reward: PlainReward
    """What is measured."""
    weight: float = 1.0
    """Factor in the sum; 0 measures and logs only."""
    gate: float | None = None
    """The value this part must reach, or the whole is `otherwise`."""
    normalise: Literal["none", "running"] = "none"
    """`running` takes off the mean and divides by the standard deviation of all values so far. A gate sees neither."""
    clip: tuple[float, float] | None = None
    """Bounds of the value, after it was normalised and before it is weighted."""

    @field_validator("clip")
    @classmethod
    def _ordered(cls, clip: tuple[float, float] | None) -> tuple[float, float] | None:
        if clip is not None and clip[0] >= clip[1]:
            raise ValueError("the lower bound comes first")
        return clip

    @model_validator(mode="after")
    def _normalised_once(self) -> Self:
        if isinstance(self.reward, RewardModel) and self.reward.normalise != "none":
            raise ValueError("set normalise on the part, not on its reward model")
        return self


class Composite(Section):
    """Weighted sum of rewards, some of which may be conditions (gates)."""

    type: Literal["composite"] = "composite"
    parts: tuple[RewardPart, ...] = Field(min_length=1)
    """Terms, each with a name, a reward and a weight."""
    otherwise: float = 0.0
    """What a completion is worth that a gate holds back."""

    @field_validator("parts")
    @classmethod
    def _names_differ(cls, parts: tuple[RewardPart, ...]) -> tuple[RewardPart, ...]:
        names = [part.name for part in parts]
        if len(set(names)) < len(names):
            raise ValueError(f"two parts have the same name: {', '.join(names)}")
        return parts


Reward = Annotated[
    Exact | Contains | Numeric | Math | Verdict | Regex | Tags | JsonSchema | Length | Overlong | Repetition | Custom
    | RewardModel | Judged | Http | Composite,
    Field(discriminator="type"),
]  # fmt: skip
