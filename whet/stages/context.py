"""What a stage is given: its configuration, its folder, and the models it may ask for by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from whet.config.launch import Launch, Local
from whet.config.model import Model
from whet.config.stage import Stage
from whet.ranks.group import ALONE, Ranks
from whet.runs.layout import StagePaths
from whet.schema.artifacts import ModelRef

ONE_PROCESS = Local()


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Everything a stage sees of the plan around it. Each stage module has `run(stage, context) -> StageResult`."""

    model: Model
    """The plan's model section (path, lora, attention, device, ...)."""
    start: ModelRef
    """The model this stage starts from."""
    models: Mapping[str, ModelRef]
    """Models by name: `base`, `previous`, and every earlier stage that has one."""
    paths: StagePaths
    """Where this stage writes, and only there."""
    folders: Mapping[str, Path]
    """Folders of earlier stages by name, for `@NAME/FILE` in `data.files`."""
    stage: Stage
    ranks: Ranks = ALONE
    """This process among those that work on the stage together."""
    launch: Launch = ONE_PROCESS
    """How they do: see the plan's `launch`."""
