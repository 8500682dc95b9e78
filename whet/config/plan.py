"""The plan: one model, a list of stages, a run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from whet.config.base import Section
from whet.config.launch import Launch, Local
from whet.config.model import Model
from whet.config.repeat import Rounds
from whet.config.sharding import NoSharding
from whet.config.stage import EvaluateStage, MergeStage, Stage, TrainStage


class Plan(Section):
    """What `whet run` does, resolved: every key has its value."""

    run: str
    """Run directory, e.g. `runs/first`. Everything the run makes is in it."""
    model: Model
    """The checkpoint everything starts from."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """What is done, in order; a bare word such as `sft` is a stage with that kind's defaults."""
    launch: Launch = Local()
    """Where the plan runs, and as how many processes. A run may go on with another `launch`; a bare word such as
    `local` is that type with its defaults."""

    loops: tuple[Rounds, ...] = ()
    """What each `repeat` became: see `config.unroll`."""

    @model_validator(mode="after")
    def _named_once_and_in_order(self) -> Self:
        models, names = ["base", "previous"], {"base", "previous"}
        ends = {loop.rounds[-1][-1]: loop.name for loop in self.loops}
        for stage in self.stages:
            if stage.name in names:
                raise ValueError(f"two models or stages are called {stage.name!r}")
            for wanted in (stage.start, *(stage.models if isinstance(stage, EvaluateStage) else ())):
                if wanted not in models:
                    raise ValueError(f"stage {stage.name!r} asks for {wanted!r}; earlier models: {', '.join(models)}")
            names.add(stage.name)
            if isinstance(stage, TrainStage | MergeStage):
                models.append(stage.name)
            if stage.name in ends:
                if ends[stage.name] in names:
                    raise ValueError(f"two models or stages are called {ends[stage.name]!r}")
                names.add(ends[stage.name])
                models.append(ends[stage.name])
        return self

    @model_validator(mode="after")
    def _weights_in_4_bits_stay_whole(self) -> Self:
        if self.model.quantization is not None and not isinstance(self.launch.sharding, NoSharding):
            raise ValueError(
                "model.quantization holds whole weights on every rank, and launch.sharding "
                f"{self.launch.sharding.type} parts them: leave one of them out"
            )
        return self

    @classmethod
    def load(
        cls, source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str] = (), *, kind: str | None = None
    ) -> Plan:
        """A plan from a YAML or JSON file, or from a mapping: see `whet.config.load.load_plan`."""
        from whet.config.load import load_plan

        return load_plan(source, overrides, kind=kind)
