"""The plan: one model, a list of stages, a run directory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from whet.config.base import Section, misplaced
from whet.config.launch import Launch, Local
from whet.config.model import Model
from whet.config.repeat import Rounds
from whet.config.sharding import NoSharding
from whet.config.stage import EvaluateStage, MergeStage, Stage, TrainStage
from whet.config.values import Place
from whet.errors import nearest

RESERVED = ("base", "previous")
"""Names of models that every plan has."""


class Plan(Section):
    """What `whet run` does, resolved: every key has its value."""

    run: Place
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
        models, names = dict.fromkeys(RESERVED), set(RESERVED)
        ends = {loop.rounds[-1][-1]: (number, loop.name) for number, loop in enumerate(self.loops)}

        def take(name: str, *place: str | int) -> None:
            if name in names:
                said = f"two models or stages are called {name!r}"
                said = f"{said}, a model of every plan" if name in RESERVED else said
                raise misplaced(said, *place, "name", fix="choose another name")
            names.add(name)

        for number, stage in enumerate(self.stages):
            take(stage.name, "stages", number)
            places: dict[tuple[str | int, ...], str] = {("start",): stage.start}
            if isinstance(stage, EvaluateStage):
                places |= {("models", index): name for index, name in enumerate(stage.models)}
            for keys, wanted in places.items():
                if wanted not in models:
                    raise _unknown_model(stage.name, wanted, models, "stages", number, *keys)
            if isinstance(stage, TrainStage | MergeStage):
                models[stage.name] = None
            if stage.name in ends:
                at, name = ends[stage.name]
                take(name, "loops", at)
                models[name] = None
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


def _unknown_model(stage: str, name: str, models: Iterable[str], *place: str | int) -> PydanticCustomError:
    near = nearest(name, models)
    return misplaced(
        f"stage {stage!r} asks for {name!r}, and no earlier model is called so", *place,
        fix=f"did you mean {near}?" if near else f"earlier models: {', '.join(models)}",
    )  # fmt: skip
