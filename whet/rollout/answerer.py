"""What an actor of the `ray` engine does: it holds an engine of its own, answers requests, and takes weights."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from whet.config.engine import Native, Vllm
from whet.errors import RunError
from whet.models.load import load_model
from whet.rollout.build import Answering, Served, open_engine, policy_engine
from whet.rollout.engine import Engine
from whet.rollout.native import NativeEngine
from whet.rollout.vllm import VllmEngine
from whet.schema.rollouts import Completion, Request

TELL_SECONDS = 0.25
"""Answers are handed on together that are made within so much time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What an actor is to be."""

    directory: str
    """Where paths of the plan start from."""
    serve: Native | Vllm
    served: Served
    answering: Answering
    follows: torch.dtype | None
    """That of the products of a model in training that this actor follows; None for a model that stays as it is."""
    probe_ids: tuple[int, ...]
    """A text by which the weights are checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The weights that training changes, by their name in the model: an adapter's alone where one trains."""

    version: int
    values: Mapping[str, np.ndarray]


class Answerer:
    """One actor. Everything that can go wrong happens in its methods, whose errors come back whole."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._model: torch.nn.Module | None = None

    def open(self, role: Role) -> None:
        """Load the model. Raises UserError where that cannot be done here."""
        try:
            os.chdir(role.directory)
        except OSError as error:
            raise RunError(
                "this node of the cluster does not see the run's files", file=role.directory, found=os.uname().nodename,
                fix="start whet in a directory on storage that all nodes share",
            ) from error  # fmt: skip
        self._role = role
        if role.follows is None:
            self._engine = open_engine(role.serve, role.served, role.answering)
            return
        served = role.served
        # A server has the model on the device; the one that it is checked against need not be there too.
        model = served.model.model_copy(update={"device": "cpu"}) if isinstance(role.serve, Vllm) else served.model
        self._model = load_model(served.ref, model, dtype=role.follows, trainable=True)
        self._engine = policy_engine(role.serve, self._model, served, role.answering, dtype=role.follows)

    @torch.no_grad()
    def take(self, weights: Weights) -> tuple[float, ...]:
        """Answer with these weights from now on; returns the probe's log-probs under them, as this engine computes
        them."""
        assert self._engine is not None and self._model is not None
        own = {name: parameter for name, parameter in self._model.named_parameters() if parameter.requires_grad}
        if own.keys() != weights.values.keys():
            raise RunError(
                "the actor's model has other weights than the trainer's", field="rollout.engine",
                found=min(own.keys() ^ weights.values.keys()),
            )  # fmt: skip
        for name, parameter in own.items():
            parameter.copy_(torch.tensor(weights.values[name]))
        self._engine.sync(weights.version)
        match self._engine:
            case NativeEngine():
                return self._engine.logprobs(self._role.probe_ids)
            case VllmEngine():
                return self._engine.probed
        raise AssertionError("an actor follows with an engine of its own")

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[Completion, ...]]:
        """Every request's completion, some at a time, as they come."""
        assert self._engine is not None
        made: list[Completion] = []
        told = time.monotonic()
        for completion in self._engine.generate(requests):
            made.append(completion)
            if time.monotonic() - told >= TELL_SECONDS:
                yield tuple(made)
                made, told = [], time.monotonic()
        if made:
            yield tuple(made)
