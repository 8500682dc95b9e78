"""Which records of a mixture are used: each source's `num_samples`, the weights, and the `num_samples` of all.

It needs how many records each source has and no more, so nothing is held in memory but a byte a record. The same plan
and counts give the same draw; what is drawn keeps the order of the files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from whet.config.data import Data

if TYPE_CHECKING:
    from whet.data.locate import Place

KEPT = 0
REASONS = {1: "not drawn (num_samples)", 2: "left out by the mixture's weights"}
"""Why a record is not used."""
NOT_DRAWN, LEFT_OUT = REASONS


def draws(places: Sequence[Place], data: Data) -> bool:
    """Whether some records may be left out, so that they have to be counted before the first is used."""
    sampled = data.num_samples is not None or any(place.num_samples is not None for place in places)
    return sampled or len({place.weight for place in places}) > 1


def fates(counts: Sequence[int], places: Sequence[Place], data: Data) -> list[NDArray[np.uint8]]:
    """For each source a number a record: 0 where it is used, else one of `REASONS`."""
    found = [np.zeros(count, np.uint8) for count in counts]
    for fate, place in zip(found, places, strict=True):
        _sample([fate], place.num_samples, f"{data.seed}:{place.name}")
    _mix(found, places, data.seed)
    _sample(found, data.num_samples, f"{data.seed}")
    return found


def _sample(found: Sequence[NDArray[np.uint8]], num: int | None, seed: str) -> None:
    """Keep that many of the records used so far, drawn without repetition. Fewer are all kept."""
    used = np.concatenate([fate == KEPT for fate in found])
    total = int(used.sum())
    if num is None or num >= total:
        return
    dropped = np.ones(total, bool)
    dropped[_generator(seed).choice(total, num, replace=False, shuffle=False)] = False
    left_out = np.zeros(len(used), bool)
    left_out[used] = dropped
    for fate, part in zip(found, np.split(left_out, np.cumsum([len(fate) for fate in found])[:-1]), strict=True):
        fate[part] = NOT_DRAWN


def _mix(found: Sequence[NDArray[np.uint8]], places: Sequence[Place], seed: int) -> None:
    """Shares by weight. Equal weights use every row once; otherwise the source that is rarest for its weight limits."""
    weights = [place.weight for place in places]
    if len(set(weights)) == 1:
        return
    sizes = [int((fate == KEPT).sum()) for fate in found]
    unit = min(size / weight for size, weight in zip(sizes, weights, strict=True))
    for index, (fate, size, weight) in enumerate(zip(found, sizes, weights, strict=True)):
        quota = math.floor(unit * weight + 1e-9)
        dropped = np.ones(size, bool)
        dropped[_generator(f"{seed}:mixture:{index}").choice(size, quota, replace=False, shuffle=False)] = False
        fate[np.flatnonzero(fate == KEPT)[dropped]] = LEFT_OUT


def _generator(seed: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(int.from_bytes(sha256(seed.encode()).digest()[:16])))
