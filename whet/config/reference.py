"""The reference policy that preference training is tied to."""

from __future__ import annotations

from whet.config.base import Section
from whet.config.values import Device, Place


class OnlineReference(Section):
    """Log-probs of another policy on the same responses."""

    model: Place = "start"
    """`start` (the model this stage starts from), `base`, a stage name, or a checkpoint. `start` with an adapter needs
    no second model: the adapter is switched off."""
    device: Device = "auto"
    """Where a second model computes; `auto` is the device of training, or the CPU where its memory does not suffice."""


class Reference(OnlineReference):
    """The same on fixed data, where they never change."""

    cache: bool = True
    """Keep the log-probs of every row in the stage folder: measured once, used in all epochs."""
