"""Rounds: stages done several times over, and what ends them early."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from whet.config.base import Section
from whet.config.values import Word


class Stop(Section):
    """What ends rounds before all of them are done; it is looked at after every round."""

    no_gain: int | None = Field(None, ge=1)
    """Ends after so many rounds in a row whose value of `metric` is not better than the best before by more than its
    95 % interval."""
    max_length_growth: float | None = Field(None, gt=1.0)
    """Ends after a round whose answers to the task of `metric` are on average more than this many times as long as
    those of the first model measured on it."""


class Repeat(Section):
    """Stages done `repeat` times: an entry of `stages` that has stages of its own."""

    repeat: int = Field(ge=1, le=1000)
    """How many rounds. The stages of round 2 are called NAME-2: a folder and a model of their own."""
    name: Word = "round"
    """What the rounds are called; behind them it names the model that they left."""
    metric: str | None = Field(None, pattern=r"^[^/]+/.+$")
    """TASK/METRIC of an evaluate stage among `stages`, e.g. `held_out/accuracy`: what rounds are compared by."""
    stop: Stop = Stop()
    keep: Literal["last", "best"] = "last"
    """Whose model later stages go on from: the last round's, or that of the round with the best value of `metric`
    among those within `stop.max_length_growth`."""

    @model_validator(mode="after")
    def _compared_by_something(self) -> Self:
        wants = [
            name
            for name, wanted in (
                ("stop.no_gain", self.stop.no_gain is not None),
                ("stop.max_length_growth", self.stop.max_length_growth is not None),
                ("keep: best", self.keep == "best"),
            )
            if wanted
        ]
        if wants and self.metric is None:
            raise ValueError(f"{wants[0]} compares rounds: set `metric` to the TASK/METRIC to compare them by")
        return self


class Rounds(Repeat):
    """What a `repeat` became in a resolved plan: its stages stand in the plan's list, and here by name."""

    start: str
    """The model the first round started from."""
    rounds: tuple[tuple[str, ...], ...] = Field(min_length=1)
    """Names of the stages, round by round."""
    models: tuple[str, ...]
    """The model each round leaves: that of its last stage that trains a language model."""

    @property
    def stages(self) -> frozenset[str]:
        """Names of all stages of all rounds."""
        return frozenset(name for names in self.rounds for name in names)
