"""The batch arithmetic of verl, checked before anything is written.

    prompts of a round x samples           = responses,    a multiple of the GPUs
    prompts of a round / minibatches       = prompts of an optimiser step, whole
    responses of an optimiser step / GPUs  = whole, and whole passes of `micro_batch_per_gpu`

verl finds some of this out after Ray and the models have started, and some of it never.
"""

from __future__ import annotations

from dataclasses import dataclass

from whet.config.verl import Verl
from whet.launch.verl.refuse import refused

DEFAULT_TOKENS = 16_384
"""Tokens of a forward pass where nothing is said (verl's own default)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Numbers of a round, and what the user calls them, for complaints."""

    prompts: int
    """Prompts of a round."""
    step_prompts: int
    """Prompts of an optimiser step."""
    samples: int
    """Responses of a prompt."""
    prompt_tokens: int
    """The longest prompt."""
    response_tokens: int
    """The longest response."""
    passes: int = 1
    """Passes over a round."""
    round_key: str = "train.batch_size"
    step_key: str = "objective.minibatches"
    samples_key: str = "rollout.group_size"

    @property
    def steps(self) -> int:
        """Optimiser steps of a round."""
        return self.passes * (self.prompts // self.step_prompts)


def check(batch: Batch, options: Verl, *, num_prompts: int) -> None:
    """Raises ConfigError where verl's numbers do not come out even, or there is not one whole round."""
    gpus = options.num_gpus
    if batch.prompts % batch.step_prompts:
        raise refused(
            batch.step_key, f"{batch.prompts} prompts of a round are not whole optimiser steps",
            found=f"{batch.step_prompts} prompts a step",
            fix=f"change it or {batch.round_key}",
        )  # fmt: skip
    if batch.step_prompts * batch.samples % gpus:
        raise refused(
            batch.round_key, f"an optimiser step has {batch.step_prompts} prompts x {batch.samples} responses, which "
            f"{gpus} GPUs cannot share evenly", found=batch.prompts,
            fix=f"make {batch.round_key}, {batch.samples_key} or {batch.step_key} fit the GPUs",
        )  # fmt: skip
    share = batch.step_prompts * batch.samples // gpus
    micro = options.micro_batch_per_gpu
    if micro is not None and share % micro:
        raise refused(
            "verl.micro_batch_per_gpu", f"a GPU has {share} responses of an optimiser step, which are no whole passes",
            found=micro, fix=f"take a divisor of {share}",
        )  # fmt: skip
    if num_prompts < batch.prompts:
        raise refused(
            batch.round_key, f"there are {num_prompts} prompts, and verl leaves out a round that is not full: it "
            "would do no step", found=batch.prompts, fix=f"take at most {num_prompts}",
        )  # fmt: skip
    longest = batch.prompt_tokens + batch.response_tokens
    if options.tokens_per_gpu is not None and options.tokens_per_gpu < longest:
        raise refused(
            "verl.tokens_per_gpu", f"a prompt and its response may have {longest} tokens", found=options.tokens_per_gpu,
            fix=f"take at least {longest}",
        )  # fmt: skip


def rounds(steps: int, batch: Batch) -> int:
    """verl counts rounds, whet optimiser steps: so many of these are so many begun rounds."""
    return -(-steps // batch.steps)
