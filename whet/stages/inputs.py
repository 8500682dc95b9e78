"""What a stage reads, found in its configuration and hashed: the other half of a stage's identity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from whet.config.base import Section
from whet.config.data import Data, Source
from whet.config.model import Model
from whet.config.rollout import Checker, Judge
from whet.config.stage import EvaluateStage, Stage
from whet.runs.ledger import content_hash
from whet.schema.artifacts import ModelRef


def input_hashes(
    stage: Stage, model: Model, start: ModelRef, models: Mapping[str, ModelRef], folders: Mapping[str, Path]
) -> dict[str, str]:
    """Content hashes of all files a stage reads, by the name the plan gives them.

    What is not on this disk (a hub id) is named by its id; what is missing is left to the stage to complain about.
    """
    named: dict[str, str] = {}
    refs = {"start": start} | (
        {name: models[name] for name in stage.models} if isinstance(stage, EvaluateStage) else {}
    )
    for name, ref in refs.items():
        named |= {f"model {name}": ref.path} | ({f"adapter {name}": ref.adapter} if ref.adapter else {})
    if model.chat_template:
        named["chat template"] = model.chat_template
    named |= {name: resolve(name, folders) for name in files_in(stage)}
    return {name: content_hash(Path(place)) if Path(place).exists() else place for name, place in named.items()}


def files_in(section: Section) -> Iterator[str]:
    """Every file name in a section and the sections below it."""
    match section:
        case Data(files=files, eval_files=eval_files, registry=registry):
            for entry in (*files, *eval_files):
                yield entry.path if isinstance(entry, Source) else entry
            if registry:
                yield registry
        case Checker(type="custom", path=str(path)) if ".py:" in path:
            yield path.rsplit(":", 1)[0]
        case Judge(template=template):
            yield template
        case _:
            for name in type(section).model_fields:
                value = getattr(section, name)
                for item in value if isinstance(value, tuple) else (value,):
                    if isinstance(item, Section):
                        yield from files_in(item)


def resolve(name: str, folders: Mapping[str, Path]) -> str:
    """The path of a name in `data.files`: `@NAME/FILE` lies in the folder of stage NAME."""
    if name.startswith("@") and "/" in name:
        stage, _, file = name[1:].partition("/")
        if stage in folders:
            return str(folders[stage] / file)
    return name
