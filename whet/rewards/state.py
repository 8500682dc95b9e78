"""What rewards have seen, as plain numbers: a run that is resumed goes on normalising as if it had never stopped.

    state = save_state(reward)          {"model": {"num": 128.0, "mean": 0.31, "squares": 40.2}}
    load_state(reward, state)

Numbers are kept by the name of the part that is normalised, `reward` for a reward without parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from whet.rewards.composite import CompositeReward
from whet.rewards.normalise import NormalisedReward, Running
from whet.rewards.reward import Reward

RewardState = dict[str, dict[str, float]]
WHOLE = "reward"
"""Name of the numbers of a reward that has no parts."""


def save_state(reward: Reward) -> RewardState:
    """Empty where nothing is normalised."""
    return {name: running.state() for name, running in _running(reward).items()}


def load_state(reward: Reward, state: Mapping[str, Mapping[str, float]]) -> None:
    """Go on from what `save_state` gave. Raises ValueError where it was another reward's."""
    running = _running(reward)
    if running.keys() != state.keys():
        raise ValueError(f"the state is of {sorted(state)}, the reward normalises {sorted(running)}")
    for name, numbers in state.items():
        running[name].restore(numbers)


@contextmanager
def on_scale(reward: Reward, scale: RewardState | None) -> Iterator[None]:
    """Normalise by `scale` and nothing else; without one, by what is scored here. What was seen before comes back."""
    before, running = save_state(reward), _running(reward)
    if scale is None:
        for numbers in running.values():
            numbers.restore(Running().state())
    else:
        load_state(reward, scale)
    for numbers in running.values():
        numbers.stands = scale is not None
    try:
        yield
    finally:
        for numbers in running.values():
            numbers.stands = False
        load_state(reward, before)


def _running(reward: Reward) -> dict[str, Running]:
    match reward:
        case NormalisedReward(running=running):
            return {WHOLE: running}
        case CompositeReward(parts=parts):
            return {part.config.name: part.running for part in parts if part.running is not None}
        case _:
            return {}
