"""From the plan's `launch.sharding` to the way the weights are held. The engines are imported where they are used."""

from __future__ import annotations

import torch

from whet.config.sharding import DeepSpeed, Fsdp, NoSharding, Sharding
from whet.ranks.group import Ranks
from whet.train.sharding.holding import Holding


def holding_of(sharding: Sharding, device: torch.device, dtype: torch.dtype, ranks: Ranks) -> Holding | None:
    """None where every rank holds the whole model, and where there is one rank without an engine."""
    match sharding:
        case NoSharding():
            return None
        case Fsdp():
            from whet.train.sharding.fsdp import FsdpHolding

            return None if ranks.world == 1 else FsdpHolding(sharding, device, dtype, ranks)
        case DeepSpeed():
            from whet.train.sharding.zero import ZeroHolding

            return None if ranks.world == 1 else ZeroHolding(sharding, device, dtype, ranks)
