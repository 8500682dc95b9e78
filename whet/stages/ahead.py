"""What a plan names and nobody has: files, models, templates and functions, found before the first stage starts.

A stage that names what is not there would else stop the run after hours of those in front of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from whet.config.base import Section
from whet.config.data import Data, Source
from whet.config.engine import Http, Vllm, served_by
from whet.config.evaluate import WinRateTask
from whet.config.judge import Asking, Listwise, Meta, Pairwise, PointwiseForm, RewardJudge
from whet.config.plan import Plan
from whet.config.prompts import SelfInstruct
from whet.config.reference import OnlineReference
from whet.config.reject import Functions
from whet.config.rewards import Custom, RewardModel
from whet.config.rollout import Checker
from whet.config.rules import JsonSchema
from whet.config.stage import MergeStage, OfflineStage, PairStage, RejectStage, Stage, TrainStage
from whet.config.value import ModelValue
from whet.data.locate import locate
from whet.errors import ConfigError, DataError, ModelError, RunError, nearest
from whet.rewards.template import SHIPPED
from whet.runs.given import resolve
from whet.runs.layout import RunPaths
from whet.runs.ledger import read_status
from whet.schema.artifacts import is_hub_id

TEMPLATES = (*SHIPPED, "self_instruct")


def check_ahead(plan: Plan, stages: Sequence[Stage], paths: RunPaths, *, fresh: bool) -> None:
    """Raises ConfigError for the first of the stages that names what is not there and no stage will make.

    Stages that are done are not looked at, nor are rounds that may never come.
    """
    ends = {loop.rounds[-1][-1]: loop.name for loop in plan.loops}
    later = {name for loop in plan.loops if _may_end_early(loop.stop) for names in loop.rounds[1:] for name in names}
    models = {"base", "previous"}
    for number, stage in enumerate(stages, start=1):
        status = None if fresh else read_status(paths.stage(number, stage.name))
        if stage.name not in later and (status is None or status.status != "done"):
            look = _Look(stage, models, plan)
            for place, section in placed(stage, stage.name):
                look.at(place, section)
        if isinstance(stage, RejectStage) and stage.functions.save is not None:
            return  # it may write any file
        if isinstance(stage, TrainStage | MergeStage):
            models.add(stage.name)
        if stage.name in ends:
            models.add(ends[stage.name])


def _may_end_early(stop: Section) -> bool:
    return any(value is not None for _, value in stop)


def placed(section: Section, place: str) -> Iterator[tuple[str, Section]]:
    """A section and every section below it, each with its dotted key."""
    yield place, section
    for name, value in section:
        for index, item in enumerate(value) if isinstance(value, tuple) else ((None, value),):
            if isinstance(item, Section):
                yield from placed(item, f"{place}.{name}" if index is None else f"{place}.{name}.{index}")


class _Look:
    """One stage's look at what it names. Every method raises ConfigError."""

    def __init__(self, stage: Stage, models: set[str], plan: Plan) -> None:
        self.stage, self.models = stage, models
        self.base, self.run = plan.model.path, Path(plan.run).absolute()

    def at(self, place: str, section: Section) -> None:
        match section:
            case Data():
                self._data(place, section)
            case PairStage(chosen=chosen, rejected=rejected):
                self._sources(f"{place}.chosen", chosen, Data())
                self._sources(f"{place}.rejected", rejected, Data())
            case OnlineReference(model=model) | ModelValue(model=model):
                self._model(f"{place}.model", model)
            case RewardModel(path=path, adapter=adapter) | RewardJudge(path=path, adapter=adapter):
                self._model(f"{place}.path", path)
                self._adapter(f"{place}.adapter", adapter)
            case WinRateTask(against=against):
                self._model(f"{place}.against", against)
            case Checker(path=str(path)) | Custom(path=path):
                self._function(f"{place}.path", path)
            case Functions():
                for name in type(section).model_fields:
                    self._function(f"{place}.{name}", getattr(section, name))
            case JsonSchema(path=path):
                self._file(f"{place}.path", path)
        if isinstance(section, Asking) and not _serves_its_own(section):
            self._model(f"{place}.model", section.model)
        if isinstance(section, PointwiseForm | Pairwise | Listwise | Meta | WinRateTask | SelfInstruct):
            self._template(f"{place}.template", section.template)

    def _data(self, place: str, data: Data) -> None:
        if isinstance(self.stage, RejectStage) and self.stage.functions.read is not None:
            return  # a function of the user's reads it
        self._sources(f"{place}.files", data.files, data)
        if isinstance(self.stage, OfflineStage) and data is self.stage.data:
            self._sources(f"{place}.eval_files", data.eval_files, data)

    def _sources(self, key: str, sources: Sequence[str | Source], data: Data) -> None:
        for entry in sources:
            source = entry if isinstance(entry, Source) else Source(path=entry)
            if source.path.startswith("@") or self._will_be_made(source.path):
                continue
            try:
                locate(source, data, {})
            except DataError as error:
                raise ConfigError(
                    error.problem, file=error.file, line=error.line, field=key, found=error.found, fix=error.fix
                ) from None

    def _model(self, key: str, name: str) -> None:
        """A name that is none of the plan's models is a directory, or, where it looks like one, a hub id."""
        if name in ("start", "self", self.base, *self.models) or self._will_be_made(name):
            return
        if Path(name).exists():
            try:
                resolve(name)
            except (ModelError, RunError) as error:
                raise ConfigError(error.problem, field=key, found=error.found, fix=error.fix) from None
            return
        if is_hub_id(name):
            return
        near = nearest(name, self.models)
        raise ConfigError(
            "no such model", field=key, found=repr(name),
            fix=f"did you mean {near}?" if near else f"give a directory, a hub id, or one of {_listed(self.models)}",
        )  # fmt: skip

    def _file(self, key: str, path: str | None) -> None:
        if path is not None and not self._is_there(path):
            raise ConfigError("no such file", field=key, found=repr(path), fix="check the path")

    def _adapter(self, key: str, name: str | None) -> None:
        if name is not None and not is_hub_id(name):
            self._file(key, name)

    def _template(self, key: str, name: str) -> None:
        if name not in TEMPLATES and not self._is_there(name):
            near = nearest(name, TEMPLATES)
            fix = f"did you mean {near}?" if near else "give a text file, or the name of one that ships"
            raise ConfigError("no such template", field=key, found=repr(name), fix=fix)

    def _function(self, key: str, path: str | None) -> None:
        """What it is named in; whether it is there shows once that is imported."""
        if path is None:
            return
        place, _, name = path.rpartition(":")
        if not place or not name:
            raise ConfigError(
                "no such function", field=key, found=repr(path), fix="write module:function or FILE.py:function"
            )
        if place.endswith(".py"):
            self._file(key, place)
        elif not _is_module(place.partition(".")[0]):
            raise ConfigError("no such module", field=key, found=repr(path), fix="give FILE.py:function, or install it")

    def _is_there(self, path: str) -> bool:
        return self._will_be_made(path) or Path(path).exists()

    def _will_be_made(self, path: str) -> bool:
        """Whether it lies in the run directory, where earlier stages write."""
        return Path(path).absolute().is_relative_to(self.run)


def _serves_its_own(asking: Asking) -> bool:
    """Whether a server judges, which has a model already."""
    match served_by(asking.engine) if asking.engine is not None else None:
        case Http() | Vllm(url=str()):
            return True
    return False


def _is_module(name: str) -> bool:
    if Path(name).exists() or Path(f"{name}.py").exists():
        return True
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _listed(models: set[str]) -> str:
    return ", ".join(sorted(models))
