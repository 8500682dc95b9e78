"""Advantages of responses: their rewards against a baseline. [R] rewards and [R] prompts in, [R] out, no gradient.

A reward that is NaN or infinite could not be had: it stands in no mean and no deviation, and its advantage is 0.
`groups` [R] int64 says which prompt a response answers, 0 to G - 1. Against a mean, responses to a prompt that all have
the same reward have the advantage 0 exactly, whatever rounding makes of that mean. So has one that nothing can be
compared with: the only known reward of its prompt, which verl takes as it is and TRL sets to 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from whet.objectives.loss import Total

EPSILON = 1e-6
"""Added to a group's standard deviation, as in verl. GRPO's paper has none, TRL 1e-4."""


def group_advantages(rewards: Tensor, groups: Tensor, *, divide_by_std: bool, epsilon: float = EPSILON) -> Tensor:
    """A = (r - mean) / (std + epsilon) over a prompt's responses (GRPO, 2402.03300, section 4.1.2).

    The deviation has Bessel's correction, as in TRL and verl. Without it (Dr. GRPO, 2503.20783) A = r - mean.
    """
    known = Known.of(rewards, groups)
    centred = known.centred()
    return centred / (known.std()[groups] + epsilon) if divide_by_std else centred


def leave_one_out(rewards: Tensor, groups: Tensor) -> Tensor:
    """A = r - mean of the prompt's other responses = n / (n - 1) (r - mean of all) (RLOO, 2402.14740)."""
    known = Known.of(rewards, groups)
    return known.centred() * (known.counts / (known.counts - 1.0).clamp(min=1.0))[groups]


def best_of_group(rewards: Tensor, groups: Tensor) -> Tensor:
    """1 for a prompt's best response, the first of equals, and 0 for the others (RAFT, 2304.06767)."""
    known = Known.of(rewards, groups)
    best = known.known & (rewards == known.extreme("amax")[groups])
    places = torch.arange(len(rewards), device=rewards.device)
    num = len(known.counts)
    first = places.new_full((num,), len(rewards)).scatter_reduce(0, groups[best], places[best], "amin")
    return (places == first[groups]).to(rewards)


def raw_rewards(rewards: Tensor, groups: Tensor) -> Tensor:
    """A = r: no baseline."""
    return torch.where(torch.isfinite(rewards), rewards, 0.0)


def reward_metrics(rewards: Tensor, groups: Tensor) -> dict[str, Total]:
    """Under TRL's names, over what is known; `frac_reward_zero_std` is the share of prompts without a signal.

    `reward_std` is the deviation of a prompt's rewards, averaged over the prompts; TRL 1.16 takes that of all rewards.
    """
    known = Known.of(rewards, groups)
    rated = float((known.counts > 0).sum())
    equal = (known.counts > 0) & ~known.differ
    num_known = float(known.counts.sum())
    return {
        "reward": Total(torch.where(known.known, rewards, 0.0).sum(), num_known),
        "reward_std": Total(known.std().sum(), rated),
        "frac_reward_zero_std": Total(equal.to(rewards.dtype).sum(), rated),
    }


@dataclass(frozen=True, slots=True)
class Known:
    """The known rewards of R responses, by their G prompts."""

    rewards: Tensor
    """[R]."""
    groups: Tensor
    """[R] int64."""
    known: Tensor
    """[R] bool."""
    counts: Tensor
    """[G], known rewards of each prompt, in the type of the rewards."""

    @staticmethod
    def of(rewards: Tensor, groups: Tensor) -> Known:
        known = torch.isfinite(rewards)
        counts = groups.new_zeros(int(groups.max()) + 1 if len(groups) else 0).index_add(0, groups, known.long())
        return Known(rewards, groups, known, counts.to(rewards))

    def sum(self, values: Tensor) -> Tensor:
        """[R] -> [G] over what is known."""
        kept = torch.where(self.known, values, 0.0)
        return kept.new_zeros(len(self.counts)).index_add(0, self.groups, kept)

    def extreme(self, which: Literal["amax", "amin"]) -> Tensor:
        """[G], `amax` or `amin` of each prompt; infinite where nothing is known."""
        worst = -torch.inf if which == "amax" else torch.inf
        kept = torch.where(self.known, self.rewards, worst)
        return kept.new_full((len(self.counts),), worst).scatter_reduce(0, self.groups, kept, which)

    @property
    def differ(self) -> Tensor:
        """[G] bool: a prompt's rewards are not all the same."""
        return self.extreme("amax") > self.extreme("amin")

    def centred(self) -> Tensor:
        """[R], reward minus mean; 0 where it is unknown or all are the same."""
        mean = self.sum(self.rewards) / self.counts.clamp(min=1.0)
        return torch.where(self.known & self.differ[self.groups], self.rewards - mean[self.groups], 0.0)

    def std(self) -> Tensor:
        """[G], with Bessel's correction; 0 where fewer than two are known."""
        return (self.sum(self.centred().square()) / (self.counts - 1.0).clamp(min=1.0)).sqrt()
