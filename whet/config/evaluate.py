"""Evaluation tasks: each gives numbers with n and a 95 % interval."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from whet.config.base import Section
from whet.config.data import Data
from whet.config.judge import Asking, PointwiseForm
from whet.config.rollout import Checker
from whet.config.values import Place, Seed, Temperature


class _Generated(Section):
    name: str | None = None
    """Name in tables; null takes the type."""
    data: Data = Data()
    """Prompts, with their references where the task needs them."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest answer."""
    temperature: Temperature = 0.0
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """As in `rollout.top_p`."""
    num_samples: int = Field(1, ge=1)
    """Answers per prompt; the interval counts prompts, not answers."""
    batch_size: int = Field(64, ge=1)
    """Answers decoded at the same time."""
    seed: Seed = 42
    """Seed of the sampling."""


class ExactTask(_Generated):
    """Share of answers a checker calls right."""

    type: Literal["exact"] = "exact"
    checker: Checker = Checker()
    by: str | None = None
    """Column to break the accuracy down by, e.g. `task`."""


class VerdictTask(_Generated):
    """Which of two candidates is better, asked in both orders: accuracy, and how much the order decides.

    Rows hold a `reference` such as `Image 1 is better`, and a column that names the item: an item's rows ask the same
    with its candidates in either order, as `whet data compare` writes them. The interval counts items.
    """

    type: Literal["verdict"] = "verdict"
    item: str = "item"
    """Column that names the item."""
    by: str | None = None
    """Column to break the accuracy down by."""


class OverlapTask(_Generated):
    """ROUGE-1/2/L and BLEU against the references, 0 to 100."""

    type: Literal["overlap"] = "overlap"


class MatchJudge(Asking):
    """Who compares the answers of two models, and how."""

    model: Place = "base"
    """Who judges: `base`, a stage's name, `self` (the model evaluated), or a checkpoint (directory or hub id)."""
    votes: int = Field(1, ge=1)
    """Judgements of a pair in each order; their majority decides."""
    temperature: Temperature = 0.0
    """0 takes the most likely token."""


class SelfJudge(PointwiseForm):
    """How the model under evaluation is asked for a score."""

    model: Place = "self"
    """`self`, the model under evaluation."""
    votes: int = Field(1, ge=1)
    """Judgements of an answer; those that can be read are put together."""
    temperature: Temperature = 0.0
    """0 takes the most likely token."""


class WinRateTask(_Generated):
    """Pairwise wins against another model, judged in both orders; a disagreement between the orders is a tie."""

    type: Literal["win_rate"] = "win_rate"
    against: Place = "base"
    """`base`, the name of an earlier stage, or a checkpoint (directory or hub id)."""
    template: Place = "pairwise"
    """`pairwise`, or a text file with {instruction}, {first} and {second}."""
    judge: MatchJudge = MatchJudge()
    """Who judges, and how."""
    checker: Checker | None = None
    """Decides instead of a judge: the answer that it gives more wins."""


class JudgementTask(Section):
    """How well the model judges: the chance that an answer called good scores above one called bad (AUC)."""

    type: Literal["judgement"] = "judgement"
    name: str | None = None
    """Name in tables; null takes the type."""
    data: Data = Data()
    """Answers with a label, good or bad: rows {prompt, completion, label}."""
    judge: SelfJudge = SelfJudge()
    """How it is asked: a pointwise judge."""
    batch_size: int = Field(64, ge=1)
    """Judgements decoded at the same time."""
    seed: Seed = 42
    """Seed of the sampling."""

    @model_validator(mode="after")
    def _judges_itself(self) -> Self:
        if self.judge.model not in ("self", "start") or self.judge.engine is not None:
            raise ValueError("`judgement` measures how the models of the stage judge: name the judge under `models`")
        if self.judge.needs_probabilities:
            raise ValueError("`judgement` reads scores as they are written: leave judge.scores at parse")
        return self


class PerplexityTask(Section):
    """Perplexity of the assistant tokens of held-out records."""

    type: Literal["perplexity"] = "perplexity"
    name: str | None = None
    """Name in tables; null takes the type."""
    data: Data = Data()
    """Conversations whose assistant turns are scored."""
    batch_size: int = Field(16, ge=1)
    """Records per forward pass."""


Task = Annotated[
    ExactTask | OverlapTask | WinRateTask | JudgementTask | PerplexityTask | VerdictTask, Field(discriminator="type")
]
