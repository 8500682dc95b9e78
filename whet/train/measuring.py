"""Passes over a round's responses before it is trained on: log-probs of the policy and the reference, and values.

The engine's own log-probs stand for the policy's where its arithmetic is the trainer's. That is not assumed: a share
of every round is measured by the trainer as well, and where the two differ, so is the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from whet.data.pack import fill, pack_groups
from whet.data.pictures import PictureReader
from whet.ranks.pulse import beat
from whet.runs.files import writing
from whet.train.flat import Flat
from whet.train.parallel import Parallel
from whet.train.policy import Measure

CHECKED_SHARE = 1 / 8
"""Prompts of a round whose responses the trainer measures to see whether the engine's log-probs are its own."""
SAME = 1e-4
"""Largest difference of a token's log-prob up to which they are."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What passes over the responses gave when the round began, [N] each; None where nobody wants it."""

    policy: Tensor | None = None
    """Log-probs."""
    reference: Tensor | None = None
    """Log-probs."""
    values: Tensor | None = None
    drift: Tensor | None = None
    """[] largest difference between the engine's log-probs and the trainer's on the share that was checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """How a round is measured. What was measured is kept in `folder`, for runs that are killed within the round.

    Of several ranks each measures its share of the prompts, and all get the numbers of all.
    """

    policy: Measure | None
    """None where the policy's log-probs are not wanted."""
    reference: Measure | None
    values: Measure | None = None
    whole: bool
    """Tokens are drawn from the policy's whole distribution: the engine's log-probs may be the policy's."""
    stale: bool = False
    """The tokens may have been drawn with older weights: only the engine knows the log-probs that they had."""
    several_steps: bool
    """A round is trained on in more than one step, so that the policy moves away from what it was when it began."""
    micro_batch_tokens: int
    seed: int
    parallel: Parallel
    folder: Path
    reader: PictureReader | None = None
    """Loads the pictures of the prompts."""

    @property
    def has_old(self) -> bool:
        """Whether the policy that is trained may differ from the one that a round was drawn with."""
        return self.several_steps or self.stale

    def __call__(self, number: int, flat: Flat) -> Measured:
        """The passes over the round's responses, or what is on disk of them."""
        path = self.folder / f"{number:06d}.safetensors"
        if self.parallel.ranks.on_main(path.is_file, "whether the round is measured"):
            return Measured(**load_file(path))
        passed = self._policy(number, flat)
        everything = range(len(flat.groups))
        for name, measure in (("reference", self.reference), ("values", self.values)):
            if measure is not None:
                passed[name] = self._passed(flat, measure, everything)
        if passed and self.parallel.is_main:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_suffix(".tmp")
                save_file(passed, temporary)
                temporary.replace(path)
        return Measured(**passed)

    def _policy(self, number: int, flat: Flat) -> dict[str, Tensor]:
        """The policy's log-probs, by the engine where it tells them as the trainer would."""
        if self.policy is None:
            return {}
        if self.stale:
            return {"policy": flat.sampler_logprobs.clone()}
        if not self.whole:
            return {"policy": self._passed(flat, self.policy, range(len(flat.groups)))}
        draw = np.random.Generator(np.random.PCG64([self.seed, number]))
        order = [int(g) for g in draw.permutation(len(flat.groups))]
        num = max(1, round(CHECKED_SHARE * len(order)))
        found = self._passed(flat, self.policy, order[:num])
        places = _tokens(flat, order[:num])
        drift = (found[places] - flat.sampler_logprobs[places]).abs().max()
        if float(drift) <= SAME:
            return {"policy": flat.sampler_logprobs.clone(), "drift": drift}
        rest = _tokens(flat, order[num:])
        found[rest] = self._passed(flat, self.policy, order[num:])[rest]
        return {"policy": found, "drift": drift}

    def _passed(self, flat: Flat, measure: Measure, groups: Sequence[int]) -> Tensor:
        """[N] in the flat order, measured in micro-batches for these prompts and 0 elsewhere."""
        out = torch.zeros(len(flat.rows))
        own = self.parallel.ranks.share(groups)
        for part in fill([flat.groups[g].num_tokens for g in own], self.micro_batch_tokens):
            mine = [own[i] for i in part]
            beat("measuring the round")
            with self.parallel.forward():
                packed = pack_groups([flat.groups[g] for g in mine], self.reader)
                numbers = measure(packed.to(self.parallel.device)).cpu().float()
            out[_tokens(flat, mine)] = numbers
        return self.parallel.total(out)


def _tokens(flat: Flat, groups: Sequence[int]) -> Tensor:
    """Places of the tokens of all responses to these prompts."""
    first = flat.first_rows
    return flat.tokens_of([row for g in groups for row in range(first[g], first[g + 1])])
