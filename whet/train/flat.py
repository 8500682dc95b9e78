"""The responses of a round laid end to end: what advantages are made of, and batches are cut from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from whet.data.render import Renderer
from whet.data.rendered import RenderedGroup
from whet.experience.round_file import Round


@dataclass(frozen=True, kw_only=True)
class Flat:
    """The scored responses of a round: G groups, R responses, N tokens, in one order."""

    groups: tuple[RenderedGroup, ...]
    keys: tuple[str, ...]
    """[R], of their completions."""
    group_of: Tensor
    """[R] int64."""
    lengths: Tensor
    """[R] int64."""
    rewards: Tensor
    """[R], NaN where there is none."""
    sampler_logprobs: Tensor
    """[N]."""

    @cached_property
    def rows(self) -> Tensor:
        """[N] int64, the response of each token."""
        return torch.repeat_interleave(torch.arange(len(self.lengths)), self.lengths)

    @cached_property
    def first_rows(self) -> list[int]:
        """First response of each group, and the number of all behind them."""
        return [0, *np.cumsum([len(group.response_ids) for group in self.groups]).tolist()]

    @cached_property
    def _spans(self) -> list[tuple[int, int]]:
        ends = self.lengths.cumsum(0).tolist()
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def tokens(self, row: int) -> slice:
        """Places of a response's tokens."""
        return slice(*self._spans[row])

    def tokens_of(self, rows: Sequence[int]) -> Tensor:
        """Places of the responses' tokens, response by response."""
        return torch.cat([torch.arange(*self._spans[row]) for row in rows])


def flatten(made: Round, renderer: Renderer) -> Flat:
    """The responses that can be trained on; a completion that failed, or is empty, is none."""
    groups: list[RenderedGroup] = []
    sampler: list[float] = []
    keys, group_of, lengths, rewards = [], [], [], []
    for group in made.groups:
        usable = [
            (completion, score)
            for completion, score in zip(group.completions, group.scores, strict=True)
            if completion.is_trainable
        ]
        if not usable:
            continue
        asked = renderer.ask(group.prompt.messages, group.prompt.tools, origin=group.prompt.origin)
        for completion, score in usable:
            assert len(completion.logprobs) == len(completion.ids), "the engine gives log-probs"
            keys.append(completion.key)
            group_of.append(len(groups))
            lengths.append(len(completion.ids))
            rewards.append(float("nan") if score.value is None else score.value)
            sampler += completion.logprobs
        groups.append(
            RenderedGroup(
                prompt_ids=asked.prompt_ids,
                response_ids=tuple(completion.ids for completion, _ in usable),
                origin=group.prompt.origin,
                pictures=asked.pictures,
            )
        )
    return Flat(
        groups=tuple(groups),
        keys=tuple(keys),
        group_of=torch.tensor(group_of, dtype=torch.int64),
        lengths=torch.tensor(lengths, dtype=torch.int64),
        rewards=torch.tensor(rewards, dtype=torch.float32),
        sampler_logprobs=torch.tensor(sampler, dtype=torch.float32),
    )

