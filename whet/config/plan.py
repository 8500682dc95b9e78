"""The plan: one model, a list of stages, a run directory."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from whet.config.base import Section
from whet.config.model import Model
from whet.config.stage import EvaluateStage, MergeStage, PrepareStage, Stage


class Plan(Section):
    """What `whet run` does, resolved: every key has its value."""

    run: str
    """Run directory, e.g. `runs/first`. Everything the run makes is in it."""
    model: Model
    stages: tuple[Stage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _named_once_and_in_order(self) -> Self:
        known: list[str] = ["base", "previous"]
        for stage in self.stages:
            if stage.name in known:
                raise ValueError(f"two stages are called {stage.name!r}" if stage.name not in ("base", "previous")
                                 else f"a stage cannot be called {stage.name!r}")  # fmt: skip
            wanted = [stage.start, *(stage.models if isinstance(stage, EvaluateStage) else ())]
            for name in wanted:
                if name not in known:
                    raise ValueError(f"stage {stage.name!r} starts from {name!r}, which is no earlier stage ({', '.join(known)})")
            if not isinstance(stage, EvaluateStage | PrepareStage):
                known.append(stage.name)
            elif stage.name:
                known.append(stage.name)
        return self

    @property
    def has_merge(self) -> bool:
        return any(isinstance(stage, MergeStage) for stage in self.stages)
