"""The reference policy: what scores a packed row as the model did before it was trained.

Where an adapter trains, the reference is the same weights without it (or with a frozen copy of the adapter that
training went on from): no second model is held. Else it is a second model, on a device of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor

from whet.models.mode import evaluating
from whet.models.placed import Placed
from whet.models.scoring import TokenScorer
from whet.models.unreadable import unreadable
from whet.schema.packed import Packed

FROZEN = "reference"
"""Name of the frozen copy of an adapter."""

Scores = Callable[[Packed], Tensor]
"""From a packed row to the [N] log-probs of its targets, without gradient."""


def by_adapter(scorer: TokenScorer, adapter: str | None, *, temperature: float = 1.0) -> Scores:
    """The model that `scorer` trains, its adapter switched off; or with the adapter saved at `adapter` in its place.

    `temperature` is that of the log-probs: online RL compares the distributions it samples from. Raises ModelError
    where the saved adapter cannot lie beside the trained one.
    """
    model = scorer.model
    assert isinstance(model, PeftModel), "there is an adapter to switch"
    if adapter is not None:
        training = model.training
        _load_frozen(model, adapter)
        model.train(training)  # peft leaves it in evaluation mode, without dropout

    def score(packed: Packed) -> Tensor:
        with torch.no_grad(), evaluating(model), _as_before(model, frozen=adapter is not None):
            logprobs: Tensor = scorer(packed, temperature=temperature).logprobs
        return logprobs

    return score


def _load_frozen(model: PeftModel, adapter: str) -> None:
    """The second adapter of a model. peft takes only one that trains biases, since those lie in the layers."""
    with unreadable(
        "the reference cannot be a second copy of this adapter", field="model.adapter", path=adapter,
        fix="put a merge stage before this one, and train a new adapter",
    ):  # fmt: skip
        model.load_adapter(adapter, FROZEN, is_trainable=False)


@contextmanager
def _as_before(model: PeftModel, *, frozen: bool) -> Iterator[None]:
    if not frozen:
        with model.disable_adapter():
            yield
        return
    trained = model.active_adapter
    model.set_adapter(FROZEN)
    try:
        yield
    finally:
        model.set_adapter(trained)


class SecondModel:
    """A frozen model of its own; where the device's memory runs out it moves to the CPU and says so."""

    def __init__(
        self,
        load: Callable[[torch.device], torch.nn.Module],
        device: torch.device,
        *,
        fall_back: bool,
        temperature: float = 1.0,
    ) -> None:
        """`load` gives the model on a device. Without `fall_back` running out of memory stays an error."""
        self._placed = Placed(
            lambda place: TokenScorer(load(place)).eval(), device, fall_back=fall_back, what="the reference model"
        )
        self._temperature = temperature

    @property
    def device(self) -> torch.device:
        return self._placed.device

    def release(self) -> None:
        """Give up the model: nothing will be asked of it for now. It is loaded again if something is."""
        self._placed.release()

    def __call__(self, packed: Packed) -> Tensor:
        return self._placed.use(partial(self._score, packed))

    @torch.no_grad()
    def _score(self, packed: Packed, scorer: TokenScorer) -> Tensor:
        logprobs: Tensor = scorer(packed.to(self.device), temperature=self._temperature).logprobs
        return logprobs.to(packed.input_ids.device)
