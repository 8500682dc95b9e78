"""What of a forward pass is kept for the backward pass, and where: the same gradients, in other memory and time.

Recomputation (Chen et al., 1604.06174) keeps the input of a layer and computes the rest of it once more; `selective`
also keeps the results of wide matrix products and of attention, so that what is computed again is cheap. Offloading
(`whet.models.offload`) moves what is kept to the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from whet.config.train import Train
from whet.errors import ModelError

WIDE = 128
"""A product over fewer numbers is computed again: an adapter's second one is cheap beside what its result takes."""


@dataclass(frozen=True, slots=True)
class Activations:
    """How the layers of a model keep theirs."""

    every: int = 0
    """Every so many layers one recomputes; 0 is none, 1 all."""
    selective: bool = False
    """A layer that recomputes keeps the results of its products."""
    offload: bool = False
    """What is kept lies in the host's memory."""

    @classmethod
    def of(cls, train: Train) -> Activations:
        """The plan's words."""
        match train.gradient_checkpointing:
            case bool(wanted):
                return cls(every=int(wanted), offload=train.activation_offload)
            case int(every):
                return cls(every=every, offload=train.activation_offload)
            case "selective":
                return cls(every=1, selective=True, offload=train.activation_offload)


KEEPING_ALL = Activations()


def can_recompute(whole: PreTrainedModel) -> bool:
    """Whether transformers can do it for this class, and one of its modules would."""
    switches = (getattr(module, "gradient_checkpointing", None) for module in whole.modules())
    return whole.supports_gradient_checkpointing and any(switch is not None for switch in switches)


def check_recomputing(whole: PreTrainedModel, how: Activations) -> None:
    """Raises ModelError where the plan asks for it and the model cannot: training would find out at its first step."""
    if how.every and not can_recompute(whole):
        raise ModelError(
            "transformers cannot recompute this model's activations", field="train.gradient_checkpointing",
            found=type(whole).__name__, fix="leave the key out; smaller micro-batches take less memory too",
        )  # fmt: skip


@contextmanager
def recomputing(whole: PreTrainedModel, how: Activations) -> Iterator[None]:
    """Let the model's layers recompute in one forward pass and its backward pass."""
    if not how.every:
        yield
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if how.selective:
        options["context_fn"] = _selecting
    whole.activation_checkpointing_enable(options, every_n_layers=how.every)
    try:
        yield
    finally:
        whole.activation_checkpointing_disable()


def products_are_kept() -> bool:
    """Whether the result of a product must stay as it is, for it will be taken instead of computing it again."""
    return _KEEPING.get()


_KEEPING: ContextVar[bool] = ContextVar("keeping", default=False)


def _selecting() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the forward pass of one layer, and for its second."""
    first, second = create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]
    return _keeping(first), _keeping(second)


@contextmanager
def _keeping(mode: AbstractContextManager[Any]) -> Iterator[None]:
    token = _KEEPING.set(True)
    try:
        with mode:
            yield
    finally:
        _KEEPING.reset(token)


def _policy(_: Any, operator: Any, *args: Any, **__: Any) -> CheckpointPolicy:
    kept = operator in ATTENTION or (operator in PRODUCTS and args[PRODUCTS[operator]].shape[-1] >= WIDE)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


PRODUCTS = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1}
"""With the place of the argument whose last dimension is summed over."""
ATTENTION = {
    getattr(torch.ops.aten, name).default
    for name in (
        "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu",
    )
    if hasattr(torch.ops.aten, name)
}  # fmt: skip
