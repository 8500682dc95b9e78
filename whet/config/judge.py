"""Who judges, in which form, and how its words become scores. A class is one form of judge, chosen by `type`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from whet.config.base import Section
from whet.config.engine import Engine, Http
from whet.config.values import Place, Temperature

MOST_SCORES = 21
"""Scores on a scale that are weighed by their probability: from 0 to 20, say."""


class Asking(Section):
    """Which language model is asked for its judgement, and how."""

    model: Place = "start"
    """Who judges: `start` (the model the stage starts from), `base`, a stage's name, or a checkpoint directory."""
    engine: Engine | None = None
    """What runs the judge; null takes the stage's own engine where `start` judges, else one of its kind, or, where
    the stage's is a server that runs already, one inside this process. A server of
    type http judges with the model it serves."""
    votes: int = Field(3, ge=1)
    """Judgements of the same thing; those that can be read are put together."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest judgement."""
    temperature: Temperature = 0.7
    """0 takes the most likely token."""
    top_p: float = Field(0.9, gt=0.0, le=1.0)
    """As in `rollout.top_p`."""


class PointwiseForm(Asking):
    """What every judge of single answers has."""

    template: Place = "additive"
    """`additive` (five points, reason first), `score_first`, or a text file with {instruction} and {response}."""
    scores: Literal["parse", "expectation"] = "parse"
    """`parse` takes the score as it is written; `expectation` the mean of all scores on the scale, each by the
    probability it had at that place (G-Eval, 2303.16634), which leaves fewer ties. It takes whole scores, and the
    engine native or vllm."""
    low: float = 0.0
    """Lowest valid score; a reply outside [low, high] counts as unreadable."""
    high: float = 5.0
    """Highest valid score."""

    @property
    def needs_probabilities(self) -> bool:
        """Whether an engine must say how likely given words are."""
        return self.scores == "expectation"

    @model_validator(mode="after")
    def _scale(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.scores == "expectation" and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("scores=expectation weighs whole scores: low and high must be whole numbers")
        if self.scores == "expectation" and isinstance(self.engine, Http):
            raise ValueError("scores=expectation asks how likely given scores are: take engine=native or vllm")
        if self.scores == "expectation" and self.high - self.low >= MOST_SCORES:
            raise ValueError(f"scores=expectation weighs at most {MOST_SCORES} scores: narrow low and high")
        return self


class Pointwise(PointwiseForm):
    """Every answer alone, on a scale (Yuan et al., 2401.10020): the mean of its readable votes."""

    type: Literal["pointwise"] = "pointwise"


class Pairwise(Asking):
    """Answers two by two, each pair in both orders; what does not survive the swap is a tie (2306.05685)."""

    type: Literal["pairwise"] = "pairwise"
    template: Place = "pairwise"
    """`pairwise`, or a text file with {instruction}, {first} and {second}."""
    votes: int = Field(1, ge=1)
    """Judgements of a pair in each order; their majority decides."""
    temperature: Temperature = 0.0
    """0 takes the most likely token."""
    aggregate: Literal["win_share", "bradley_terry"] = "win_share"
    """Score from wins: `win_share` is won comparisons over all, ties half; `bradley_terry` the chance of winning
    against the others by strengths fitted to them, which is fairer where comparisons are missing. Both in [0, 1]."""


class Listwise(Asking):
    """All answers of a prompt in one reply, which ranks them, shown in an order drawn from the seed."""

    type: Literal["listwise"] = "listwise"
    template: Place = "listwise"
    """`listwise`, or a text file with {instruction} and {responses}."""


class RewardJudge(Section):
    """A reward model scores the answers; nobody is asked for words."""

    type: Literal["reward_model"] = "reward_model"
    path: Place
    """Checkpoint directory, or the name of an earlier reward stage."""
    adapter: Place | None = None
    """Adapter directory, where the reward model is one."""
    batch_tokens: int | None = Field(None, ge=1)
    """Tokens per forward pass; null fits it to the model and the device."""


LanguageJudge = Pointwise | Pairwise | Listwise
"""Judges that are asked for words."""
Judge = Annotated[Pointwise | Pairwise | Listwise | RewardJudge, Field(discriminator="type")]


class Meta(Section):
    """The judge's judgements are judged too, and become preferences that train the judge (2407.19594, section 2.2)."""

    template: Place = "meta"
    """`meta`, or a text file with {instruction}, {response}, {first} and {second}."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest verdict."""
    temperature: Temperature = 0.0
    """0 takes the most likely token."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """As in `rollout.top_p`."""
    per_prompt: int = Field(1, ge=1)
    """Answers per prompt whose judgements are compared: those on which the votes differ most."""
    max_chosen_tokens: int | None = Field(None, ge=1)
    """No pair where the better judgement is longer than this; null allows any length."""
