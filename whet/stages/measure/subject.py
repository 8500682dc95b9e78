"""Who is measured: a model under the name it has in tables, in memory or behind an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from whet.config.engine import Engine as EngineConfig
from whet.config.engine import Native
from whet.data.render import Renderer
from whet.rollout.build import Answering, Served, load_for_generation, native_engine, open_engine
from whet.rollout.engine import Engine


class Voice(Protocol):
    """A model that can be looked into and asked."""

    @property
    def model(self) -> torch.nn.Module:
        """In this process's memory."""
        ...

    def engine(self, batch_size: int) -> Engine:
        """Belongs to the voice."""
        ...

    def close(self) -> None:
        """Stop what runs elsewhere; the next question starts it again."""
        ...


class Present:
    """A model that somebody else holds in memory: it may be training."""

    def __init__(self, model: torch.nn.Module, answering: Answering) -> None:
        self.model, self._answering = model, answering

    def engine(self, batch_size: int) -> Engine:
        return native_engine(self.model, replace(self._answering, batch_size=batch_size))

    def close(self) -> None:
        """It is not ours."""


class Called:
    """A model of a run, loaded where it is looked into or answers here, and served where an engine says so."""

    def __init__(self, config: EngineConfig, served: Served, answering: Answering) -> None:
        self._config, self._served, self._answering = config, served, answering
        self._server: Engine | None = None

    @cached_property
    def model(self) -> torch.nn.Module:
        precision = self._config.precision if isinstance(self._config, Native) else "auto"
        return load_for_generation(self._served, precision)

    def engine(self, batch_size: int) -> Engine:
        answering = replace(self._answering, batch_size=batch_size)
        if isinstance(self._config, Native):
            return native_engine(self.model, answering, self._config)
        self._server = self._server or open_engine(self._config, self._served, answering)
        return self._server

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._server = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model ready to answer."""

    label: str
    voice: Voice
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer

    @property
    def model(self) -> torch.nn.Module:
        """In this process's memory."""
        return self.voice.model

    def engine(self, batch_size: int) -> Engine:
        return self.voice.engine(batch_size)


RefLoader = Callable[[str, EngineConfig | None], Subject]
"""Finds a model by name (`base`, a stage, a directory) for tasks that need a second one; it answers through the engine
that is given, or one of the stage's kind."""
