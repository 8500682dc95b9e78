"""How answers are drawn, judged and turned into pairs."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from whet.config.base import Section
from whet.config.engine import Engine, Http, Native
from whet.config.values import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE, Place, Seed, Temperature


class Rollout(Section):
    """Sampling of candidates by an engine."""

    engine: Engine = Native()
    """Who generates."""
    group_size: int = Field(4, ge=1)
    """Samples per prompt (Self-Rewarding LMs: 4)."""
    max_new_tokens: int = Field(512, ge=1)
    """Longest answer; a longer one is cut and counts as such."""
    min_new_tokens: int = Field(0, ge=0)
    """The end-of-turn token cannot be drawn before this many tokens."""
    temperature: Temperature = 0.7
    """0 takes the most likely token; else from 0.001 to 100."""
    top_p: float = Field(0.9, gt=0.0, le=1.0)
    """Draw among the most likely tokens that hold this much probability together; 1 keeps all."""
    top_k: int = Field(0, ge=0)
    """0 keeps every token."""
    min_p: float = Field(0.0, ge=0.0, le=1.0)
    """Draw among the tokens that are at least this many times as likely as the likeliest; 0 keeps all."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end an answer and are not part of it."""
    batch_size: int = Field(32, ge=1)
    """Samples decoded at the same time."""
    seed: Seed = 42
    """A sample depends on this, its prompt and its number alone."""

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens {self.min_new_tokens} exceeds max_new_tokens {self.max_new_tokens}")
        return self


class OnlineRollout(Rollout):
    """Sampling of the completions that online RL trains on: from the whole distribution, as it is trained."""

    group_size: int = Field(8, ge=1)
    """Samples per prompt."""
    temperature: float = Field(1.0, ge=LOWEST_TEMPERATURE, le=HIGHEST_TEMPERATURE)
    """Of the distribution that is sampled from and trained."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Draw among the most likely tokens that hold this much probability together; 1 keeps all, as the formulas ask."""
    batch_size: int = Field(64, ge=1)
    """Samples decoded at the same time."""
    staleness: int = Field(0, ge=0, le=1)
    """Rounds that completions may lag behind the weights: 1 draws the next round while this one is trained on, and
    takes the engine's log-probs for the old policy's."""

    @property
    def whole(self) -> bool:
        """Whether tokens are drawn from the model's whole distribution."""
        return self.top_p == 1 and self.top_k == 0 and self.min_p == 0 and self.min_new_tokens == 0

    @model_validator(mode="after")
    def _stale_rollouts_are_whole(self) -> Self:
        if self.staleness and not self.whole:
            raise ValueError(
                "staleness needs tokens from the whole distribution, whose log-probs the trainer compares with: "
                "leave top_p, top_k, min_p and min_new_tokens at their defaults"
            )
        return self

    @model_validator(mode="after")
    def _nothing_runs_beside_a_recording(self) -> Self:
        if self.staleness and isinstance(self.engine, Native) and self.engine.graphs:
            raise ValueError(
                "staleness trains while the engine draws, and what runs beside a CUDA graph that is recorded spoils "
                "it: leave engine.graphs or staleness out"
            )
        return self

    @model_validator(mode="after")
    def _weights_can_follow(self) -> Self:
        if isinstance(self.engine, Http):
            raise ValueError("online RL trains the model that answers, and a server of type http cannot take weights")
        return self


class PpoRollout(OnlineRollout):
    """Sampling for PPO, whose baseline is a value function: one sample of a prompt is enough."""

    group_size: int = Field(1, ge=1)
    """Samples per prompt."""


class PairRollout(OnlineRollout):
    """Sampling for online DPO, which pairs the best and the worst sample of a prompt."""

    group_size: int = Field(2, ge=1)
    """Samples per prompt."""


class OnlinePairs(Section):
    """How scored completions become pairs."""

    min_margin: float = Field(0.0, ge=0.0)
    """Best and worst must differ by more than this; 0 drops ties only."""
    keep_ties: bool = False
    """Keep pairs with equal scores (and different texts)."""


class Pairs(OnlinePairs):
    """How scored candidates become preferences, and weights."""

    select: Literal["best_worst", "all", "best_random", "right_wrong"] = "best_worst"
    """`best_worst` is one pair a prompt; `all` every pair of answers whose scores differ enough; `best_random` the
    best against a worse one drawn from the seed; `right_wrong` the best right answer against the best wrong one, by
    `checker`."""
    max_per_prompt: int | None = Field(None, ge=1)
    """For `all`: at most so many pairs of a prompt, the widest margins first; null keeps all."""
    length_control: float = Field(0.0, ge=0.0, lt=0.5)
    """For `best_worst`, rho of Meta-Rewarding (2407.19594): of the answers that score within this part of the range
    from the top the shortest is chosen, of those as near the bottom the longest rejected; 0 looks at scores alone."""
    weight_temperature: float = Field(1.0, gt=0.0)
    """Temperature of the softmax over scores in gspo_training.jsonl."""

    @model_validator(mode="after")
    def _fits_the_selection(self) -> Self:
        if self.length_control and self.select != "best_worst":
            raise ValueError(f"length_control is for select=best_worst, and select is {self.select}")
        if self.max_per_prompt is not None and self.select != "all":
            raise ValueError(f"max_per_prompt is for select=all, and select is {self.select}")
        return self


class Checker(Section):
    """A rule that says whether an answer is right."""

    type: Literal["exact", "contains", "numeric", "math", "custom"] = "exact"
    """`exact` compares stripped text with the reference, `contains` looks for it, `numeric` compares the last
    number, `math` the final answer, `custom` calls `path`."""
    path: Place | None = None
    """`module:function` or `FILE.py:function`, called as f(prompt, completion, **columns) -> float in [0, 1]."""

    @model_validator(mode="after")
    def _custom_has_path(self) -> Self:
        if (self.type == "custom") != (self.path is not None):
            raise ValueError("path is for type=custom, and type=custom needs it")
        return self
