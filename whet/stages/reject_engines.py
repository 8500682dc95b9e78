"""The engines of a reject stage: the one that answers and those that judge, each opened when it is first needed."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Self

from whet.config.judge import PointwiseForm
from whet.config.stage import RejectStage
from whet.data.render import Renderer
from whet.experience.earlier import recalling
from whet.experience.remembered import Remembered
from whet.rewards.build import RewardSetting
from whet.rollout.build import Answering, Served, open_engine
from whet.rollout.engine import Engine
from whet.stages.context import Context
from whet.stages.functions import FunctionEngine
from whet.stages.judging import judge_engine, judge_renderer
from whet.stages.shares import put_aside


class RejectEngines:
    """Closed together at the end of a `with` block."""

    def __init__(self, stage: RejectStage, context: Context, renderer: Renderer, folder: Path) -> None:
        """`folder` takes what judges said until their scores are on disk."""
        self._stage, self._context, self._folder, self.renderer = stage, context, folder, renderer
        self._judges: list[Remembered] = []
        self._opened: list[Engine] = []
        path = stage.functions.generate
        self._function = FunctionEngine(path, self._num_tokens) if path is not None else None

    @cached_property
    def answering(self) -> Engine:
        """Who answers the prompts."""
        if self._function is not None:
            return self._function
        stage, context = self._stage, self._context
        answering = Answering.by(self.renderer, batch_size=stage.rollout.batch_size)
        engine = open_engine(
            stage.rollout.engine, Served(ref=context.start, model=context.model, folder=context.paths.root), answering
        )
        self._opened.append(engine)
        return engine

    def setting(self) -> RewardSetting:
        """What rewards may ask of this stage: earlier reward models, the answer's limit, a judge."""
        return RewardSetting(
            models=self._context.models, max_new_tokens=self._stage.rollout.max_new_tokens, judge=self._judge,
            vision=self._context.model.vision,
        )  # fmt: skip

    def _judge(self, judge: PointwiseForm) -> tuple[Engine, Renderer]:
        path = self._folder / f"judging{len(self._judges) or ''}.jsonl"
        remembered = Remembered(partial(self._open_judge, judge), path)
        self._judges.append(remembered)
        return remembered, judge_renderer(judge, self._context)

    def _open_judge(self, judge: PointwiseForm) -> Engine:
        """The answering engine where the same model judges, else another."""
        own = None if self._function is not None else self.answering
        engine = judge_engine(judge, self._stage.rollout, self._context, own)
        if engine is not own:
            self._opened.append(engine)
        return recalling(engine, put_aside(self._context.paths.root, "judging*.jsonl"))

    def _num_tokens(self, text: str) -> int:
        return len(self.renderer.template.tokenizer(text, add_special_tokens=False)["input_ids"])

    def forget(self) -> None:
        """What the judges said has become scores that are on disk."""
        for judge in self._judges:
            judge.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for engine in (*self._judges, *reversed(self._opened)):
            engine.close()
