"""Objectives over pairs: a class is an algorithm by name, its defaults the published setting.

h is the log-ratio to the reference of the chosen response minus that of the rejected one, r_w - r_l.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from whet.config.base import Section


class _WithReference(Section):
    beta: float = Field(0.1, gt=0)
    """Scale of the implicit reward: the larger, the closer the policy stays to the reference."""
    nll_weight: float = Field(0.0, ge=0.0)
    """Adds this much of the chosen response's negative log-likelihood per token (iterative RPO, 2404.19733: 1)."""


class _OfDifference(_WithReference):
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    """What ties the policy to the reference (f-DPO, 2309.16240); `reverse_kl` is the published form."""
    divergence_alpha: float = Field(0.5, gt=0.0, lt=1.0)
    """For `alpha`: towards 0 it is the reverse KL, towards 1 the forward KL."""


class Sigmoid(_OfDifference):
    """DPO (Rafailov et al., 2305.18290, eq. 7): -log sigmoid(beta * h), h the log-ratio of chosen minus rejected."""

    type: Literal["sigmoid"] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0.0, lt=0.5)
    """Chance that a label is wrong."""


class Cdpo(_OfDifference):
    """Conservative DPO (Mitchell 2023): `sigmoid` with label smoothing."""

    type: Literal["cdpo"] = "cdpo"
    label_smoothing: float = Field(0.1, ge=0.0, lt=0.5)
    """Chance that a label is wrong."""


class Robust(_OfDifference):
    """Robust DPO (Chowdhury et al., 2403.00409): the DPO loss, made unbiased for flipped labels."""

    type: Literal["robust"] = "robust"
    beta: float = Field(0.01, gt=0)
    """Scale of the implicit reward: the larger, the closer the policy stays to the reference."""
    label_smoothing: float = Field(0.1, ge=0.0, lt=0.5)
    """Chance that a label is wrong."""


class Hinge(_OfDifference):
    """max(0, 1 - beta * h): SLiC's hinge (2305.10425) on log-ratios, as in RSO (Liu et al., 2309.06657)."""

    type: Literal["hinge"] = "hinge"
    beta: float = Field(0.05, gt=0)
    """Scale of the implicit reward: the larger, the closer the policy stays to the reference."""


class Exo(_OfDifference):
    """EXO on pairs (Ji et al., 2402.00856, eq. 16): the reverse KL to the smoothed label."""

    type: Literal["exo"] = "exo"
    label_smoothing: float = Field(1e-3, gt=0.0, lt=0.5)
    """Chance that a label is wrong."""


class Discopop(_OfDifference):
    """DiscoPOP (Lu et al., 2406.08414, eq. 5): logistic and exponential loss, blended by the log-ratio."""

    type: Literal["discopop"] = "discopop"
    beta: float = Field(0.05, gt=0)
    """Scale of the implicit reward: the larger, the closer the policy stays to the reference."""
    tau: float = Field(0.05, gt=0)
    """`discopop`: width of the blend."""


class Ipo(Section):
    """IPO (Azar et al., 2310.12036, eq. 17): (h - 1/(2 tau))^2."""

    type: Literal["ipo"] = "ipo"
    tau: float = Field(0.1, gt=0)
    """`ipo`: regularisation; the target of h is 1/(2 tau)."""
    normalise: Literal["length", "sum"] = "length"
    """`length` divides each response's log-ratio by its number of tokens (the authors' intention for language
    models); `sum` is the equation as printed."""
    nll_weight: float = Field(0.0, ge=0.0)
    """Adds this much of the chosen response's negative log-likelihood per token (iterative RPO, 2404.19733: 1)."""


class SigmoidNorm(_WithReference):
    """Length-normalised DPO (Tulu 3, 2411.15124): each log-ratio divided by its response's number of tokens."""

    type: Literal["sigmoid_norm"] = "sigmoid_norm"
    beta: float = Field(5.0, gt=0)
    """Scale of the implicit reward: the larger, the closer the policy stays to the reference."""
    label_smoothing: float = Field(0.0, ge=0.0, lt=0.5)
    """Chance that a label is wrong."""


class Aot(_WithReference):
    """Alignment by optimal transport (Melnyk et al., 2406.05882): sorted margins (or rewards) of a step compared."""

    type: Literal["aot"] = "aot"
    form: Literal["paired", "unpaired"] = "paired"
    """`paired`: the policy's margins against the reference's; `unpaired`: chosen against rejected responses."""
    label_smoothing: float = Field(0.0, ge=0.0, lt=0.5)
    """Chance that a label is wrong."""


class Nca(_WithReference):
    """NCA on pairs (Chen et al., 2402.05369): raises the chosen response itself, not only its lead."""

    type: Literal["nca"] = "nca"
    beta: float = Field(0.01, gt=0)
    """Scale of the implicit reward: the larger, the closer the policy stays to the reference."""


class Bco(_WithReference):
    """BCO on pairs (Jung et al., 2404.04656): a classifier of good and bad responses whose logit is the reward."""

    type: Literal["bco"] = "bco"
    beta: float = Field(0.01, gt=0)
    """Scale of the implicit reward: the larger, the closer the policy stays to the reference."""
    shift: Literal["batch", "none"] = "batch"
    """What is taken off the rewards: their mean over the step (the paper: a running mean), or nothing (TRL 1.16)."""


class Sppo(_WithReference):
    """SPPO with hard wins (Wu et al., 2405.00675, eq. 4.7): r_w to 1/(2 beta), r_l to -1/(2 beta)."""

    type: Literal["sppo"] = "sppo"
    beta: float = Field(0.001, gt=0)
    """Scale of the implicit reward: the larger, the closer the policy stays to the reference."""


class ApoZero(_WithReference):
    """APO-zero (D'Oosterlinck et al., 2408.06266, eq. 7): chosen up, rejected down."""

    type: Literal["apo_zero"] = "apo_zero"


class ApoDown(_WithReference):
    """APO-down (D'Oosterlinck et al., 2408.06266, eq. 8): both down, rejected further."""

    type: Literal["apo_down"] = "apo_down"


class KtoPair(_WithReference):
    """TRL's former `kto_pair`: KTO's loss on the halves of pairs, each with the other half's mean log-ratio as KL."""

    type: Literal["kto_pair"] = "kto_pair"


class Simpo(Section):
    """SimPO (Meng et al., 2405.14734): no reference, mean log-probs, a target margin."""

    type: Literal["simpo"] = "simpo"
    beta: float = Field(2.0, gt=0)
    """Scale of the implicit reward, here beta times the policy's own log-probs."""
    gamma: float = Field(1.0, ge=0.0)
    """`simpo`: lead that the chosen response's reward should have; the paper tunes gamma / beta, around 0.5."""
    label_smoothing: float = Field(0.0, ge=0.0, lt=0.5)
    """Chance that a label is wrong."""
    nll_weight: float = Field(0.0, ge=0.0)
    """Adds this much of the chosen response's negative log-likelihood per token (iterative RPO, 2404.19733: 1)."""


class Cpo(Section):
    """CPO (Xu et al., 2401.08417): no reference, summed log-probs, and the chosen response's likelihood."""

    type: Literal["cpo"] = "cpo"
    beta: float = Field(0.1, gt=0)
    """Scale of the implicit reward, here beta times the policy's own log-probs."""
    label_smoothing: float = Field(0.0, ge=0.0, lt=0.5)
    """Chance that a label is wrong."""
    nll_weight: float = Field(1.0, ge=0.0)
    """Weight of the chosen response's negative log-likelihood per token."""


class Orpo(Section):
    """ORPO (Hong et al., 2403.07691): no reference, SFT on the chosen response plus its odds against the other."""

    type: Literal["orpo"] = "orpo"
    odds_weight: float = Field(0.1, gt=0)
    """`orpo`: weight of the odds-ratio term, the paper's lambda (TRL calls it beta)."""
    nll_weight: float = Field(1.0, ge=0.0)
    """Weight of the chosen response's negative log-likelihood per token."""


OfDifference = Sigmoid | Cdpo | Robust | Hinge | Exo | Discopop
OfLengths = Ipo | SigmoidNorm
OfEach = Nca | Bco | Sppo | ApoZero | ApoDown | KtoPair
WithoutReference = Simpo | Cpo | Orpo
PlainPairwise = OfDifference | OfLengths | OfEach | Aot | WithoutReference
"""Every pairwise objective that is one formula; `whet.config.objective` adds mixtures and the alias `pai`."""
