"""Which models an evaluate stage measures, by what its plan says."""

from __future__ import annotations

from collections.abc import Sequence

from whet.config.stage import EvaluateStage, Stage
from whet.errors import ConfigError


def models_asked(stage: EvaluateStage) -> tuple[str, ...]:
    """`models`; where those are left as they are, the model the stage starts from. Raises ConfigError where both are
    set and differ."""
    if stage.start == "previous" or stage.models == (stage.start,):
        return stage.models
    if stage.models == ("previous",):
        return (stage.start,)
    raise ConfigError(
        "`start` and `models` name different models to measure", field=f"{stage.name}.start",
        found=f"{stage.start!r}, and models {', '.join(stage.models)}", fix="leave `start` out",
    )  # fmt: skip


def refuse_two_choices(stages: Sequence[Stage]) -> None:
    """The same error for any evaluate stage of a plan, before the stages in front of it train anything."""
    for stage in stages:
        if isinstance(stage, EvaluateStage):
            models_asked(stage)
