"""What the loop asks of a way to hold the weights: make the optimiser, add a gradient, step, and give a tensor whole.

Everything that needs the other ranks is called by all of them, in the same order. `Passes` sees to it for the passes
through the model, whose number differs from rank to rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from whet.config.train import Train
from whet.errors import RunError
from whet.models.backbone import unwrapped
from whet.models.parts import Gathered
from whet.models.scoring import RowScorer, TokenScorer
from whet.models.value import ValueScorer

Score = Callable[..., Any]
"""A scorer of `whet.models.scoring`, or what an engine has put around it."""
Rows = Callable[[slice | None], Tensor]
"""Gives rows of a tensor on disk, or all of it."""


class Holding(Protocol):
    """One way, for one model and one training."""

    @property
    def looks(self) -> bool:
        """Whether a pass without gradient needs the other ranks."""
        ...

    @property
    def learns(self) -> bool:
        """Whether a pass with gradient does."""
        ...

    @property
    def switches(self) -> bool:
        """Whether a pass may leave the adapter out."""
        ...

    @property
    def divides_alone(self) -> bool:
        """Whether `divide` works, which needs no other rank."""
        ...

    def divide(self, scorer: torch.nn.Module) -> None:
        """Give up what is not this rank's, before `hold`: another rank of the machine may want the room."""
        ...

    def hold(self, scorer: torch.nn.Module, train: Train) -> tuple[Score, torch.optim.Optimizer]:
        """Take over the model, and make the optimiser of what trains. Returns what the loop calls for a pass.

        Raises RunError where the plan asks for what does not go with it.
        """
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a share of the loss; `last` says that `step` comes next."""
        ...

    def step(self, max_norm: float) -> float:
        """Clip, step, clear. Returns the norm of the whole gradient before clipping."""
        ...

    def rest(self) -> None:
        """Give up what has been gathered: a module's parameters are the parts again."""
        ...

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a parameter, in fp32 where it trains; as it is before `hold`."""
        ...

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """Of all of a parameter."""
        ...

    def state(self) -> Iterator[Gathered]:
        """The optimiser's state as `NUMBER.NAME`, NUMBER the parameter's place in the groups: the same however weights
        are held."""
        ...

    def load_state(self, tensors: Mapping[str, Rows]) -> None:
        """Go on from `state`, of whatever holding."""
        ...


def check_plain(train: Train, dtype: torch.dtype, kind: str) -> None:
    """Raises RunError for optimisers and weights that cannot be held in parts."""
    if train.weights != "fp32":
        raise RunError(
            f"does not go with launch.sharding {kind}", field="train.weights", found=train.weights,
            fix="leave it at fp32: the parts are fp32, and train.precision bf16 computes in bf16",
        )  # fmt: skip
    if train.optimizer != "adamw":
        raise RunError(
            f"does not go with launch.sharding {kind}", field="train.optimizer", found=train.optimizer,
            fix="use adamw: its state is in parts",
        )  # fmt: skip
    if dtype == torch.float16:
        raise RunError(
            f"does not go with launch.sharding {kind}", field="train.precision", found="fp16", fix="use bf16 or fp32"
        )


def models_of(scorer: torch.nn.Module) -> list[PreTrainedModel]:
    """The transformers models in a scorer, without their adapters."""
    scorers = (module for module in scorer.modules() if isinstance(module, TokenScorer | RowScorer | ValueScorer))
    return [unwrapped(module.model) for module in scorers]
