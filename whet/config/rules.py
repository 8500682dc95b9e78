"""Rewards that are rules: pure functions of a completion and the reference. The others stand in `rewards`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from whet.config.base import Section
from whet.config.values import Place, Timeout

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
    timeout: Timeout = 5.0
    """Seconds for one comparison; a longer one leaves the rollout without a score."""


class Verdict(Section):
    """1 where the answer tag holds the reference's verdict, e.g. `Image 1 is better`, else 0.

    Read is the one <answer>...</answer> behind the reasoning, never the reasoning (UnifiedReward-Think, 2505.03318).
    """

    type: Literal["verdict"] = "verdict"


class Regex(Section):
    """1 where the completion has a form, else 0."""

    type: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1)
    """Regular expression; `(?s)` in front lets the dot match line breaks."""
    match: Literal["full", "search"] = "full"
    """`full`: the whole completion has the form; `search`: some part of it."""
    timeout: Timeout = 1.0
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
    path: Place | None = None
    """JSON file with the schema; or `definition`."""
    fenced: bool = True
    """One Markdown code fence around the JSON is allowed."""
    timeout: Timeout = 5.0
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
