"""What objectives of online RL share: the KL to the reference, entropy, the sampler's correction, and the clip."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from whet.config.base import Section

KlEstimator = Literal["k1", "k2", "k3"]
Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


class PolicyBase(Section):
    """Every objective of online RL."""

    kl_weight: float = Field(0.0, ge=0.0)
    """Weight of the KL to the reference; 0 needs no reference."""
    kl_in: Literal["loss", "reward"] = "loss"
    """`loss` adds the KL of the trained policy, `reward` takes that of the sampled tokens off the reward."""
    kl_estimator: KlEstimator = "k3"
    """From one token's log-ratio to the KL: k1 plain, k2 half its square, k3 exp(d) - d - 1. In the loss k1 has no
    gradient on average unless `kl_ratio` is on, and k2 has the KL's own."""
    kl_ratio: bool = False
    """Multiply the KL in the loss by the importance ratio (DeepSeek-V3.2, 2512.02556), as TRL does by default."""
    entropy_weight: float = Field(0.0, ge=0.0)
    """Weight of an entropy bonus."""
    importance_correction: Correction = "none"
    """Weigh by the trainer's probability over the sampler's, of tokens or responses; beyond the bounds it is truncated
    or left out. For an engine whose arithmetic is not the trainer's."""
    importance_cap: float = Field(2.0, gt=1.0)
    """Largest such weight (truncated tokens: 2; masked tokens, IcePop: 5; masked responses, TRL: 3)."""
    importance_floor: float = Field(0.0, ge=0.0, lt=1.0)
    """Smallest such weight (masked tokens, IcePop: 0.5); 0 has none."""
    minibatches: int = Field(1, ge=1)
    """Optimiser steps that the rollouts of one step are divided over."""

    @model_validator(mode="after")
    def _ratio_is_of_the_loss(self) -> Self:
        if self.kl_ratio and self.kl_in == "reward":
            raise ValueError("kl_ratio is for the KL in the loss: set kl_in=loss or leave it off")
        return self

    @property
    def needs_group(self) -> bool:
        """Whether a prompt needs more than one sample."""
        return True

    @property
    def needs_reference(self) -> bool:
        """Whether log-probs under the reference are read."""
        return self.kl_weight > 0

    @property
    def needs_values(self) -> bool:
        """Whether there is a value function to train."""
        return False

    @property
    def replaces_equal(self) -> bool:
        """Whether prompts whose rewards are all equal are replaced by others."""
        return False


class KlInReward(PolicyBase):
    """The KL as a part of the reward."""

    kl_in: Literal["loss", "reward"] = "reward"
    """`loss` adds the KL of the trained policy, `reward` takes that of the sampled tokens off the reward."""
    kl_estimator: KlEstimator = "k1"
    """From one token's log-ratio to the KL: k1 plain, k2 half its square, k3 exp(d) - d - 1."""


class Iterated(PolicyBase):
    """Several passes over the same rollouts."""

    num_iterations: int = Field(1, ge=1)
    """Passes over the rollouts of a step."""

    @property
    def passes(self) -> int:
        """How often the rollouts of a step are trained on."""
        return self.num_iterations


class Clipped(PolicyBase):
    """The clipped surrogate."""

    clip_low: float = Field(0.2, ge=0.0, le=1.0)
    """No gradient below the ratio 1 - clip_low where the advantage is negative."""
    clip_high: float = Field(0.2, ge=0.0)
    """No gradient above the ratio 1 + clip_high where the advantage is positive."""
    clip_delta: float | None = Field(None, gt=1.0)
    """No gradient above this ratio where the advantage is negative (dual clip, 1912.09729: 3); null has no such
    bound."""

    @model_validator(mode="after")
    def _delta_is_outside(self) -> Self:
        if self.clip_delta is not None and self.clip_delta <= 1.0 + self.clip_high:
            raise ValueError(f"clip_delta {self.clip_delta} must exceed 1 + clip_high = {1.0 + self.clip_high}")
        return self


class GroupBaseline(Iterated):
    """Advantages against the other responses to the same prompt."""

    divide_by_std: bool = True
    """Divide the advantage by the standard deviation of the prompt's rewards."""
    filter_groups: bool = False
    """Replace prompts whose rewards are all equal by others (DAPO's dynamic sampling)."""

    @property
    def replaces_equal(self) -> bool:
        """As `filter_groups` says."""
        return self.filter_groups
