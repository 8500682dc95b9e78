"""Rewards of online training: what a completion is worth. A class is one kind of reward, chosen by `type`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from whet.config.base import Section
from whet.config.rollout import Judge

TAG = r"^[A-Za-z][A-Za-z0-9_-]*$"


class Answer(Section):
    """Where in a completion the answer stands."""

    after: str | None = Field(None, min_length=1)
    """Read only what follows the last of these, e.g. `</think>`; a completion without it has no answer."""
    tag: str | None = Field(None, pattern=TAG)
    """Read only what the last <tag>...</tag> holds; a completion without it has no answer. null reads everything."""


class Exact(Answer):
    """1 where the answer, stripped, is the reference, else 0."""

    type: Literal["exact"] = "exact"


class Contains(Answer):
    """1 where the reference occurs in the answer, else 0."""

    type: Literal["contains"] = "contains"


class Numeric(Answer):
    """1 where the answer's last number is the reference's last number, else 0."""

    type: Literal["numeric"] = "numeric"


class Math(Answer):
    """1 where the final answer is mathematically the reference's, else 0, by the package math-verify.

    The final answer stands in the last \\boxed{}, else behind the last ####, else it is the last number.
    """

    type: Literal["math"] = "math"
    timeout: float = Field(5.0, gt=0)
    """Seconds for one comparison; a longer one leaves the rollout without a score."""


class Regex(Section):
    """1 where the completion has a form, else 0."""

    type: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1)
    """Regular expression; `(?s)` in front lets the dot match line breaks."""
    match: Literal["full", "search"] = "full"
    """`full`: the whole completion has the form; `search`: some part of it."""
    timeout: float = Field(1.0, gt=0)
    """Seconds for one completion; a longer search leaves the rollout without a score."""


class Tags(Section):
    """1 where the completion is a sequence of tagged blocks (DeepSeek-R1, 2501.12948, section 2.2.2), else 0.

    Every tag is there exactly once, in order, side by side, and none of the blocks is blank.
    """

    type: Literal["tags"] = "tags"
    tags: tuple[Annotated[str, Field(pattern=TAG)], ...] = Field(("think", "answer"), min_length=1)
    """Names of the blocks in their order, without brackets."""
    strict: bool = True
    """Nothing but space may stand before, between and behind the blocks."""
    opened: bool = False
    """The prompt has opened the first block already: the completion begins inside it."""

    @field_validator("tags")
    @classmethod
    def _each_once(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(tags)) < len(tags):
            raise ValueError("a tag may be named once only")
        return tags


class JsonSchema(Section):
    """1 where the completion is JSON that a JSON Schema accepts, else 0, by the package jsonschema."""

    type: Literal["json_schema"] = "json_schema"
    definition: dict[str, Any] | None = None
    """The schema itself; or `path`."""
    path: str | None = None
    """JSON file with the schema; or `definition`."""
    fenced: bool = True
    """One Markdown code fence around the JSON is allowed."""
    timeout: float = Field(5.0, gt=0)
    """Seconds for one completion; a longer check leaves the rollout without a score."""

    @model_validator(mode="after")
    def _one_schema(self) -> Self:
        if (self.definition is None) == (self.path is None):
            raise ValueError("give the schema as definition, or the file that holds it as path")
        return self


class Length(Section):
    """How near the length is to a target, or whether it keeps a budget: 1 there, falling to 0 over `slack`."""

    type: Literal["length"] = "length"
    unit: Literal["tokens", "characters", "words"] = "tokens"
    """What is counted."""
    target: int | None = Field(None, ge=1)
    """The length to have: 1 - |length - target| / slack, at least 0. Or `budget`."""
    budget: int | None = Field(None, ge=1)
    """The length not to exceed: 1 up to it, then 1 - (length - budget) / slack, at least 0. Or `target`."""
    slack: int | None = Field(None, ge=1)
    """How far off is worth nothing; null takes the target or budget itself."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.target is None) == (self.budget is None):
            raise ValueError("give either a target or a budget")
        return self


class Overlong(Section):
    """Soft overlong punishment (DAPO, 2503.14476, eq. 13): 0, then falling to -1 over the last `cache` tokens."""

    type: Literal["overlong"] = "overlong"
    max_tokens: int | None = Field(None, ge=1)
    """L_max, the length that is worth -1 (DAPO: 20480); null takes rollout.max_new_tokens."""
    cache: int | None = Field(None, ge=1)
    """L_cache, the tokens over which the punishment grows (DAPO: 4096 of 20480); null takes a fifth of L_max."""


class Repetition(Section):
    """Punishment for n-grams that repeat (Yeo et al., 2502.03373): -(1 - distinct / all), from 0 to -1."""

    type: Literal["repetition"] = "repetition"
    ngram: int = Field(3, ge=1)
    """Length of an n-gram."""
    unit: Literal["tokens", "characters", "words"] = "tokens"
    """What it is made of."""


class Custom(Section):
    """A function of yours: f(prompt, completion, **columns) -> a number, or a mapping of parts; may be async.

    `prompt` is the text of the last user message; the columns are the row's own and `reference`, as far as the function
    takes them. It runs in a process of its own.
    """

    type: Literal["custom"] = "custom"
    path: str
    """`module:function` or `FILE.py:function`."""
    timeout: float = Field(10.0, gt=0)
    """Seconds for one call; a longer one is stopped and leaves the rollout without a score."""
    concurrency: int = Field(16, ge=1)
    """Calls of an async function that wait at the same time."""


class RewardModel(Section):
    """A reward model: a sequence-classification checkpoint with one label, by its own tokenizer and template."""

    type: Literal["model"] = "model"
    path: str = Field(min_length=1)
    """Checkpoint directory, or the name of an earlier reward stage."""
    adapter: str | None = None
    """Adapter directory, where the reward model is one."""
    batch_tokens: int | None = Field(None, ge=1)
    """Tokens per forward pass; null fits it to the model and the device."""
    normalise: Literal["none", "running"] = "none"
    """`running` takes off the mean and divides by the standard deviation of all scores so far."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where it computes."""


class Judged(Judge):
    """A language model as judge (Yuan et al., 2401.10020): the mean of its readable votes."""

    type: Literal["judge"] = "judge"
    model: str = "start"
    """Who judges: `start` (the model the stage starts from), a stage name or a checkpoint directory."""
    seed: int = 42
    """Seed of the judge's sampling."""


class Http(Section):
    """A server of yours: completions go there by POST, scores come back.

    It is sent {"prompts": [...], "messages": [...], "completions": [...], "columns": [...]} and answers
    {"scores": [...]}: for each completion a number, a mapping of parts, or null for no score.
    """

    type: Literal["http"] = "http"
    url: str = Field(pattern=r"^https?://")
    """Where to POST."""
    timeout: float = Field(30.0, gt=0)
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
    Exact | Contains | Numeric | Math | Regex | Tags | JsonSchema | Length | Overlong | Repetition | Custom
    | RewardModel | Judged | Http,
    Field(discriminator="type"),
]  # fmt: skip
"""Every reward that is not made of others."""


class RewardPart(Section):
    """One term of a composite reward."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
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
    Exact | Contains | Numeric | Math | Regex | Tags | JsonSchema | Length | Overlong | Repetition | Custom
    | RewardModel | Judged | Http | Composite,
    Field(discriminator="type"),
]  # fmt: skip
