"""What a stage reads, found in its configuration and hashed: the other half of a stage's identity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from whet.config.base import Section
from whet.config.data import Data, Source
from whet.config.evaluate import WinRateTask
from whet.config.judge import Asking, Listwise, Meta, Pairwise, PointwiseForm, RewardJudge
from whet.config.model import Model
from whet.config.prompts import SelfInstruct
from whet.config.reference import OnlineReference
from whet.config.reject import Functions
from whet.config.rewards import Custom, RewardModel
from whet.config.rollout import Checker
from whet.config.rules import JsonSchema
from whet.config.stage import EvaluateStage, PairStage, Stage
from whet.config.value import ModelValue
from whet.data.digest import file_hash
from whet.data.locate import locate
from whet.errors import DataError
from whet.runs.given import ref_of
from whet.runs.ledger import content_hash
from whet.schema.artifacts import ModelRef
from whet.stages.measure.asked import models_asked


def input_hashes(
    stage: Stage, model: Model, start: ModelRef, models: Mapping[str, ModelRef], folders: Mapping[str, Path]
) -> dict[str, str]:
    """Content hashes of all files a stage reads, by the name the plan gives them. Of data every byte counts.

    What is not on this disk (a hub id) is named by its id; what is missing is left to the stage to complain about.
    """
    named: dict[str, str] = {}
    for name, ref in ({"start": start} | {name: ref_of(name, models) for name in models_in(stage)}).items():
        named |= {f"model {name}": ref.path} | ({f"adapter {name}": ref.adapter} if ref.adapter else {})
    if model.chat_template:
        named["chat template"] = model.chat_template
    hashes = {name: content_hash(Path(place)) if Path(place).exists() else place for name, place in named.items()}
    return hashes | {
        name: content_hash(Path(place), file_hash) if Path(place).exists() else place
        for name, place in files_in(stage, folders)
    }


def models_in(stage: Stage) -> Iterator[str]:
    """Every model a stage asks for beside the one it starts from, as the plan names it."""
    for section in sections_in(stage):
        match section:
            case EvaluateStage():
                yield from models_asked(section)
            case OnlineReference(model=model) | Asking(model=model) | ModelValue(model=model):
                if model not in ("start", "self"):
                    yield model
            case RewardModel(path=path) | RewardJudge(path=path):
                yield path
            case WinRateTask(against=against):
                yield against


def files_in(section: Section, folders: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """Every file a section and the sections below it name, and where it lies."""
    for found in sections_in(section):
        match found:
            case Data(files=files, eval_files=eval_files, registry=registry):
                for entry in (*files, *eval_files):
                    source = entry if isinstance(entry, Source) else Source(path=entry)
                    yield source.path, place_of(source, found, folders)
                if registry:
                    yield registry, registry
            case PairStage(chosen=chosen, rejected=rejected):
                for name in (*chosen, *rejected):
                    yield name, place_of(Source(path=name), Data(), folders)
            case SelfInstruct(template=template):
                yield template, template
            case Checker(path=str(path)) | Custom(path=path):
                yield from _python_file(path)
            case Functions():
                for function in (found.read, found.format, found.generate, found.save):
                    yield from _python_file(function) if function is not None else ()
            case JsonSchema(path=str(path)) | RewardModel(adapter=str(path)) | RewardJudge(adapter=str(path)):
                yield path, path
            case (
                PointwiseForm(template=template) | Pairwise(template=template) | Listwise(template=template)
                | Meta(template=template) | WinRateTask(template=template)
            ):  # fmt: skip
                yield template, template


def _python_file(path: str) -> Iterator[tuple[str, str]]:
    """The file of `FILE.py:function`; a module's is not this disk's to watch."""
    place = path.rpartition(":")[0]
    if place.endswith(".py"):
        yield path, place


def sections_in(section: Section) -> Iterator[Section]:
    """A section, and every section below it."""
    yield section
    for name in type(section).model_fields:
        value = getattr(section, name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Section):
                yield from sections_in(item)


def place_of(source: Source, data: Data, folders: Mapping[str, Path]) -> str:
    """Path of a source's file or directory, else the name of its hub data set, else its own words."""
    try:
        place = locate(source, data, folders)
    except DataError:
        return source.path
    return str(place.path or place.hub)
