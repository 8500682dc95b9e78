"""AdamW with a smaller state, or one that moves to the host's memory where the GPU's is full: bitsandbytes.

`8bit` keeps both running averages in 8 bits, in blocks of 256 with a scale each (Dettmers et al., 2110.02861); `paged`
keeps them in unified memory (Dettmers et al., 2305.14314, section 3). The package is optional.
"""

from __future__ import annotations

from collections.abc import Collection
from types import ModuleType
from typing import Any, Literal

import torch
from torch.nn import Parameter

from whet.config.train import Train
from whet.errors import RunError
from whet.models.bnb import bitsandbytes

Compact = Literal["adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
PROBE = 4096
"""Numbers from which on bitsandbytes uses 8 bits."""


def compact_adamw(
    kind: Compact, groups: list[dict[str, Any]], train: Train, *, exact: Collection[Parameter]
) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW; the parameters in `exact` keep a state of 32 bits.

    Raises RunError where the package is missing, or does not run on the parameters' device.
    """
    device = groups[0]["params"][0].device
    if kind.startswith("paged") and device.type == "cpu":
        raise RunError(
            "there is no GPU memory to page", field="train.optimizer", found=f"{kind} on a CPU",
            fix=f"use {kind.removeprefix('paged_')}",
        )  # fmt: skip
    package = bitsandbytes("train.optimizer", kind)
    _check_runs(package, kind, device)
    make = _class(package, kind)
    optimizer: torch.optim.Optimizer = make(groups, lr=train.learning_rate, betas=train.betas, eps=train.epsilon)
    _make_state(optimizer, exact)
    return optimizer


def _class(package: ModuleType, kind: Compact) -> Any:
    match kind:
        case "adamw_8bit":
            return package.optim.AdamW8bit
        case "paged_adamw":
            return package.optim.PagedAdamW
        case "paged_adamw_8bit":
            return package.optim.PagedAdamW8bit


def _check_runs(package: ModuleType, kind: Compact, device: torch.device) -> None:
    """Try one step: which devices a release has kernels for is known to it alone."""
    probe = Parameter(torch.zeros(PROBE, device=device))
    probe.grad = torch.ones_like(probe)
    try:
        _class(package, kind)([probe]).step()
    except (RuntimeError, AssertionError, AttributeError, TypeError, ValueError, KeyError, OSError) as error:
        raise RunError(
            f"bitsandbytes {package.__version__} does not run on {device.type}", field="train.optimizer", found=kind,
            fix=f"use adamw, or another release of bitsandbytes ({(str(error).splitlines() or [repr(error)])[0]})",
        ) from error  # fmt: skip


def _make_state(optimizer: Any, exact: Collection[Parameter]) -> None:
    """Make every state now, so that a checkpoint is loaded into it, pages included.

    A row of an embedding gets gradients of very different sizes from step to step: 8 bits are too few for it
    (2110.02861, section 2.3). The optimiser takes the width of a parameter's state from the state.
    """
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            if parameter in exact:
                first, second = (optimizer.get_state_buffer(parameter, dtype=torch.float32) for _ in range(2))
                optimizer.state[parameter] = {"step": 0, "state1": first, "state2": second}
            else:
                optimizer.init_state(group, parameter, number, place)
