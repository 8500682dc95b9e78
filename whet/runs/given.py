"""A model as a person names it: a checkpoint, an adapter's directory, or the folder of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from whet.errors import ModelError, RunError
from whet.runs.files import read_json
from whet.runs.layout import StagePaths
from whet.runs.ledger import read_status
from whet.schema.artifacts import ModelRef, is_hub_id


def ref_of(name: str, models: Mapping[str, ModelRef]) -> ModelRef:
    """One of the plan's models; any other name is resolved."""
    return models.get(name) or resolve(name)


def resolve(model: str, adapter: str | None = None) -> ModelRef:
    """What the words stand for. An adapter's directory means the checkpoint it was trained on, with it.

    Raises ModelError for the folder of a stage that has made no model, and for an adapter that is nowhere.
    """
    if adapter is not None and not Path(adapter).exists() and not is_hub_id(adapter):
        raise ModelError("no such directory", field="adapter", found=repr(adapter), fix="check the path")
    folder = Path(model)
    if (folder / "config.json").is_file() and any(folder.glob("model*.safetensors")):  # whatever else lies there
        return ModelRef(path=model, adapter=adapter)
    described = folder / "adapter_config.json"
    if adapter is None and described.is_file():
        return ModelRef(path=_base(described), adapter=model)
    if (folder / "status.json").is_file():
        return _made_by(StagePaths(folder), adapter)
    return ModelRef(path=model, adapter=adapter)


def _base(described: Path) -> str:
    """The checkpoint that an adapter says it was trained on."""
    try:
        found = read_json(described)["base_model_name_or_path"]
    except (RunError, KeyError, TypeError):
        found = None
    if not isinstance(found, str):
        raise ModelError(
            "does not say which checkpoint it was trained on", field="model", found=repr(str(described)),
            fix="write it there as base_model_name_or_path",
        )  # fmt: skip
    return found


def _made_by(stage: StagePaths, adapter: str | None) -> ModelRef:
    """A finished stage's model, wherever its run directory has been moved to."""
    status = read_status(stage)
    made = status.result.model if status is not None and status.status == "done" else None
    if made is None:
        raise ModelError(
            "this stage has made no model", field="model", found=repr(str(stage.root)),
            fix="finish its run, or name a checkpoint",
        )  # fmt: skip
    if made.adapter is not None:
        return ModelRef(path=made.path, adapter=adapter or str(stage.adapter))
    return ModelRef(path=str(stage.model), adapter=adapter)
