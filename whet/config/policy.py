"""Objectives of online RL: a class is an algorithm by name, its defaults the published setting.

They differ in the advantage (a group's baseline, the batch's moments, a value function), in the importance ratio (of
tokens or of responses) and its clip, and in what the sum over tokens is divided by.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from whet.config.base import Section
from whet.config.policy_base import Clipped, GroupBaseline, Iterated, KlEstimator, KlInReward


class AdaptiveKlWeight(Section):
    """A KL weight that moves until the measured KL is the target (Ziegler et al., 1909.08593, section 2.2)."""

    target: float = Field(6.0, gt=0)
    """KL to the reference in nats a response, which the weight is moved for: up above it, down below it."""
    horizon: float = Field(10_000.0, gt=0)
    """Responses over which the weight changes by a fifth, roughly, while the KL is a fifth off or more. A step never
    changes it by more, however many it has."""


class Ppo(KlInReward, Clipped):
    """PPO with a value function and the KL in the reward (Ziegler et al., 1909.08593; InstructGPT, 2203.02155)."""

    type: Literal["ppo"] = "ppo"
    kl_weight: float = Field(0.02, ge=0.0)
    """Weight of the KL to the reference (InstructGPT: 0.02); where `adaptive_kl` is set, the first one."""
    adaptive_kl: AdaptiveKlWeight | None = None
    """Move `kl_weight` until the KL is a target; null keeps it."""
    gamma: float = Field(1.0, gt=0.0, le=1.0)
    """Discount of a token later."""
    lam: float = Field(0.95, ge=0.0, le=1.0)
    """GAE's lambda: 1 is the return less the value, 0 looks one token ahead."""
    value_weight: float = Field(0.1, gt=0.0)
    """Weight of the value loss in the layers that policy and values share. What it is for a value model of its own,
    AdamW divides away: `value.learning_rate` is for that."""
    value_clip: float | None = Field(0.2, gt=0.0)
    """How far a value may move from the one of the rollout; null does not clip."""
    whiten: bool = True
    """Bring the advantages of all tokens of a step to mean 0 and variance 1."""
    epochs: int = Field(4, ge=1)
    """Passes over the rollouts of a step."""

    @model_validator(mode="after")
    def _adapts_a_weight(self) -> Self:
        if self.adaptive_kl is not None and self.kl_weight == 0:
            raise ValueError("adaptive_kl multiplies kl_weight, which is 0: start above it")
        if self.adaptive_kl is not None and self.kl_in == "loss":
            raise ValueError("adaptive_kl moves the KL in the reward: set kl_in=reward")
        return self

    @property
    def passes(self) -> int:
        """How often the rollouts of a step are trained on."""
        return self.epochs

    @property
    def needs_group(self) -> bool:
        return False

    @property
    def needs_values(self) -> bool:
        return True


class Grpo(GroupBaseline, Clipped):
    """GRPO (DeepSeekMath, 2402.03300, eq. 3): group-normalised rewards, the mean over each response's tokens."""

    type: Literal["grpo"] = "grpo"
    kl_weight: float = Field(0.04, ge=0.0)
    """Weight of the KL to the reference (the paper's 0.04); 0 needs no reference."""


class Dapo(GroupBaseline, Clipped):
    """DAPO (2503.14476, eq. 8): clip-higher, the mean over tokens, prompts without a signal replaced, no KL.

    Its soft punishment of overlong responses is a reward of its own.
    """

    type: Literal["dapo"] = "dapo"
    clip_high: float = Field(0.28, ge=0.0)
    """No gradient above the ratio 1 + clip_high where the advantage is positive."""
    filter_groups: bool = True
    """Replace prompts whose rewards are all equal by others (dynamic sampling)."""


class DrGrpo(GroupBaseline, Clipped):
    """Dr. GRPO (2503.20783): GRPO without the division by the deviation and by each response's length."""

    type: Literal["dr_grpo"] = "dr_grpo"
    divide_by_std: bool = False
    """Divide the advantage by the standard deviation of the prompt's rewards."""


class Bnpo(GroupBaseline, Clipped):
    """TRL's loss type `bnpo`: GRPO with the mean over tokens (not the Beta normalisation of 2506.02864)."""

    type: Literal["bnpo"] = "bnpo"


class Cispo(GroupBaseline):
    """CISPO (MiniMax-M1, 2506.13585, eq. 4): the importance weight is clipped, every token keeps its gradient."""

    type: Literal["cispo"] = "cispo"
    clip_low: float | None = Field(None, ge=0.0, le=1.0)
    """Smallest weight is 1 - clip_low; null has none, as in the paper."""
    clip_high: float = Field(4.0, ge=0.0)
    """Largest weight is 1 + clip_high: 5, as TRL recommends after ScaleRL (2510.13786); the paper has no number."""


class _Sequence(GroupBaseline, Clipped):
    clip_low: float = Field(3e-4, ge=0.0, le=1.0)
    """No gradient below the ratio 1 - clip_low where the advantage is negative; a response's ratio is a mean."""
    clip_high: float = Field(4e-4, ge=0.0)
    """No gradient above the ratio 1 + clip_high where the advantage is positive."""
    minibatches: int = Field(4, ge=1)
    """Optimiser steps that the rollouts of one step are divided over (the paper's 4; with 1 no ratio leaves 1)."""


class Gspo(_Sequence):
    """GSPO (2507.18071, eq. 5): one ratio a response, the geometric mean of its tokens'."""

    type: Literal["gspo"] = "gspo"


class GspoToken(_Sequence):
    """GSPO-token (2507.18071, eq. 13): the response's ratio with each token's own gradient."""

    type: Literal["gspo_token"] = "gspo_token"


class Rloo(KlInReward, Iterated, Clipped):
    """RLOO (2402.14740): the other responses' mean for a baseline, whole responses for actions, KL in the reward."""

    type: Literal["rloo"] = "rloo"
    kl_weight: float = Field(0.03, ge=0.0)
    """Weight of the KL to the reference (the paper's 0.03 on TL;DR); 0 needs no reference."""


class ReinforcePlusPlus(KlInReward, Iterated, Clipped):
    """REINFORCE++ (2501.03262): the rewards still to come, KL included, whitened over all tokens of the step."""

    type: Literal["reinforce_plus_plus"] = "reinforce_plus_plus"
    kl_weight: float = Field(0.01, ge=0.0)
    """Weight of the KL to the reference (its authors' OpenRLHF: 0.01); 0 needs no reference."""

    @property
    def needs_group(self) -> bool:
        return False


class ReinforcePlusPlusBaseline(Iterated, Clipped):
    """REINFORCE++ with baseline (2501.03262): rewards less the prompt's mean, whitened over the step."""

    type: Literal["reinforce_plus_plus_baseline"] = "reinforce_plus_plus_baseline"
    kl_weight: float = Field(1e-3, ge=0.0)
    """Weight of the KL to the reference (its authors' OpenRLHF: 0.001); 0 needs no reference."""
    kl_estimator: KlEstimator = "k2"
    """From one token's log-ratio to the KL: k1 plain, k2 half its square, k3 exp(d) - d - 1."""


class Raft(Iterated):
    """RAFT (Dong et al., 2304.06767): supervised learning of each prompt's best response."""

    type: Literal["raft"] = "raft"


GroupObjective = (
    Grpo | Dapo | DrGrpo | Bnpo | Cispo | Rloo | ReinforcePlusPlus | ReinforcePlusPlusBaseline | Raft
)
"""Against the other samples of a prompt, or of the step; no value function."""
SequenceObjective = Gspo | GspoToken
"""One importance ratio a response."""
PolicyObjective = Annotated[GroupObjective | SequenceObjective | Ppo, Field(discriminator="type")]
