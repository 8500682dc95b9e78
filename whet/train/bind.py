"""Config to formula: the one place where an objective's name becomes a function, with its unit beside it.

objective                            formula                          unit (what the sum is divided by)
nll, dft                             supervised.*                     trained token
sigmoid, cdpo, robust, hinge,        pairwise.*                       pair
  exo, discopop, ipo, sigmoid_norm
nca, bco, sppo, apo_zero, apo_down,  absolute.*                       pair
  kto_pair
aot                                  transport.*                      pair
simpo, cpo, orpo                     reference_free.*                 pair
mixture, pai                         the sum of its parts, the meant  pair
kto, apo_zero_unpaired               unpaired.*                       response
bradley_terry                        ranking.bradley_terry            prompt
reward_weighted, soft_preference     weighted.*                       prompt

A coupled formula's loss of one pair depends on the other pairs of the optimiser step: bco with its shift, aot,
kto_pair, and mixtures that hold one of them. It has to be called with all pairs of the step, of all micro-batches and
ranks, where the current micro-batch's log-probs carry the gradient and the others are detached; summed over the
micro-batches that is the whole gradient, however the step is split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from whet.config import objective as plan
from whet.config import pairwise as pairs
from whet.config.mixture import Mixture, MixturePart, Pai
from whet.config.supervised import Dft, Nll
from whet.errors import ConfigError
from whet.objectives import (
    absolute,
    divergence,
    pairwise,
    ranking,
    reference_free,
    supervised,
    transport,
    unpaired,
    weighted,
)
from whet.objectives.loss import Loss
from whet.objectives.mixture import PairFormula, Part, mixture, with_nll


@dataclass(frozen=True, slots=True)
class PairObjective:
    """A formula over pairs and what it asks of the learner."""

    formula: PairFormula
    coupled: bool
    """Call it with every pair of the optimiser step."""
    needs_reference: bool


@dataclass(frozen=True, slots=True)
class RatingObjective:
    """A formula over single responses."""

    formula: Callable[[unpaired.RatingLogprobs], Loss]
    needs_kl: bool
    """Whether the step's KL term has to be measured."""


@dataclass(frozen=True, slots=True)
class ScoredObjective:
    """A formula over stored responses with their numbers."""

    formula: Callable[[weighted.ScoredLogprobs], Loss]
    needs_reference: bool
    needs_moments: bool
    """Whether it reads mean and standard deviation of the whole training set."""


def supervised_formula(objective: plan.SupervisedObjective) -> Callable[[Tensor, Tensor], Loss]:
    match objective:
        case Nll():
            return supervised.nll
        case Dft():
            return supervised.dft


def pairwise_objective(objective: plan.PairwiseObjective) -> PairObjective:
    match objective:
        case Mixture(parts=parts):
            return _mixed(parts)
        case Pai():
            return pairwise_objective(objective.meant)
        case _:
            return _plain(objective)


def _mixed(parts: tuple[MixturePart, ...]) -> PairObjective:
    """The sum; where a type stands twice its terms are logged with their place behind the name."""
    bound = [_term(part.objective) for part in parts]
    types = [part.objective.type for part in parts]
    names = [t if types.count(t) == 1 else f"{t}-{place}" for place, t in enumerate(types, start=1)]
    terms = [Part(name, part.weight, one.formula) for name, part, one in zip(names, parts, bound, strict=True)]
    return PairObjective(
        partial(mixture, parts=terms),
        coupled=any(one.coupled for one in bound),
        needs_reference=any(one.needs_reference for one in bound),
    )


def _term(objective: pairs.PlainPairwise | Nll) -> PairObjective:
    match objective:
        case Nll():
            return PairObjective(reference_free.chosen_nll, coupled=False, needs_reference=False)
        case _:
            return _plain(objective)


def _plain(objective: pairs.PlainPairwise) -> PairObjective:
    """One formula, with the chosen response's likelihood added where `nll_weight` asks for it."""
    match objective:
        case pairs.Simpo() | pairs.Cpo() | pairs.Orpo():
            formula, needs_reference = _reference_free(objective), False
        case pairs.Aot(beta=beta, form=form, label_smoothing=e):
            aot = transport.aot if form == "paired" else transport.aot_unpaired
            formula, needs_reference = partial(aot, beta=beta, label_smoothing=e), True
        case pairs.Ipo() | pairs.SigmoidNorm():
            formula, needs_reference = _of_lengths(objective), True
        case pairs.Nca() | pairs.Bco() | pairs.Sppo() | pairs.ApoZero() | pairs.ApoDown() | pairs.KtoPair():
            formula, needs_reference = _of_each(objective), True
        case _:
            formula, needs_reference = _of_difference(objective), True
    if objective.nll_weight:
        formula = partial(with_nll, formula=formula, weight=objective.nll_weight)
    coupled = isinstance(objective, pairs.Aot | pairs.KtoPair) or (
        isinstance(objective, pairs.Bco) and objective.shift == "batch"
    )
    return PairObjective(formula, coupled=coupled, needs_reference=needs_reference)


def _of_difference(objective: pairs.OfDifference) -> PairFormula:
    slope = _slope(objective)
    match objective:
        case pairs.Sigmoid(beta=beta, label_smoothing=e) | pairs.Cdpo(beta=beta, label_smoothing=e):
            return partial(pairwise.sigmoid, beta=beta, label_smoothing=e, slope=slope)
        case pairs.Robust(beta=beta, label_smoothing=e):
            return partial(pairwise.robust, beta=beta, label_smoothing=e, slope=slope)
        case pairs.Hinge(beta=beta):
            return partial(pairwise.hinge, beta=beta, slope=slope)
        case pairs.Exo(beta=beta, label_smoothing=e):
            return partial(pairwise.exo, beta=beta, label_smoothing=e, slope=slope)
        case pairs.Discopop(beta=beta, tau=tau):
            return partial(pairwise.discopop, beta=beta, tau=tau, slope=slope)


def _slope(objective: pairs.OfDifference) -> divergence.Slope:
    match objective.divergence:
        case "reverse_kl":
            return divergence.reverse_kl
        case "forward_kl":
            return divergence.forward_kl
        case "js":
            return divergence.js
        case "alpha":
            return partial(divergence.alpha_divergence, alpha=objective.divergence_alpha)


def _of_lengths(objective: pairs.OfLengths) -> PairFormula:
    match objective:
        case pairs.Ipo(tau=tau, normalise=normalise):
            return partial(pairwise.ipo_length if normalise == "length" else pairwise.ipo_sum, tau=tau)
        case pairs.SigmoidNorm(beta=beta, label_smoothing=e):
            return partial(pairwise.sigmoid_norm, beta=beta, label_smoothing=e)


def _of_each(objective: pairs.OfEach) -> PairFormula:
    match objective:
        case pairs.Nca(beta=beta):
            return partial(absolute.nca, beta=beta)
        case pairs.Bco(beta=beta, shift=shift):
            return partial(absolute.bco_shifted if shift == "batch" else absolute.bco, beta=beta)
        case pairs.Sppo(beta=beta):
            return partial(absolute.sppo, beta=beta)
        case pairs.ApoZero(beta=beta):
            return partial(absolute.apo_zero, beta=beta)
        case pairs.ApoDown(beta=beta):
            return partial(absolute.apo_down, beta=beta)
        case pairs.KtoPair(beta=beta):
            return partial(absolute.kto_pair, beta=beta)


def _reference_free(objective: pairs.WithoutReference) -> PairFormula:
    match objective:
        case pairs.Simpo(beta=beta, gamma=gamma, label_smoothing=e):
            return partial(reference_free.simpo, beta=beta, gamma=gamma, label_smoothing=e)
        case pairs.Cpo(beta=beta, label_smoothing=e):
            return partial(reference_free.cpo, beta=beta, label_smoothing=e)
        case pairs.Orpo(odds_weight=odds_weight):
            return partial(reference_free.orpo, odds_weight=odds_weight)


def unpaired_objective(objective: plan.UnpairedObjective) -> RatingObjective:
    match objective:
        case plan.Kto(beta=beta, desirable_weight=good, undesirable_weight=bad):
            formula = partial(unpaired.kto, beta=beta, desirable_weight=good, undesirable_weight=bad)
            return RatingObjective(formula, needs_kl=True)
        case plan.ApoZeroUnpaired(beta=beta, desirable_weight=good, undesirable_weight=bad):
            formula = partial(unpaired.apo_zero_unpaired, beta=beta, desirable_weight=good, undesirable_weight=bad)
            return RatingObjective(formula, needs_kl=False)


def ranking_objective(objective: plan.RankingObjective) -> Callable[[ranking.RankedScores], Loss]:
    """`margin` is no part of the formula: it says which margins the rows have (`values_of` in `whet.data.answers`)."""
    return partial(ranking.bradley_terry, center=objective.center)


def weighted_objective(objective: plan.WeightedObjective, kind: Literal["reward", "weight"]) -> ScoredObjective:
    """`kind` says what the rows' numbers are. Raises ConfigError for `reward_weighted` on rows that carry weights."""
    by_length, needs_reference = objective.normalise == "length", objective.kl_weight > 0
    match objective:
        case plan.RewardWeighted() if kind == "weight":
            raise ConfigError(
                "needs rewards, and these rows carry weights", field="objective.type", found="reward_weighted",
                fix="train on rows with rewards (grpo_training.jsonl), or use soft_preference",
            )  # fmt: skip
        case plan.RewardWeighted(kl_weight=kl_weight, baseline=baseline):
            formula = partial(
                weighted.reward_weighted, advantage=_advantage(objective), kl_weight=kl_weight, by_length=by_length
            )
            return ScoredObjective(formula, needs_reference, needs_moments=baseline == "dataset")
        case plan.SoftPreference(kl_weight=kl_weight, temperature=temperature):
            tempered = weighted.tempered_rewards if kind == "reward" else weighted.tempered_weights
            formula = partial(
                weighted.soft_preference, log_weight=partial(tempered, temperature=temperature),
                kl_weight=kl_weight, by_length=by_length,
            )  # fmt: skip
            return ScoredObjective(formula, needs_reference, needs_moments=False)


def _advantage(objective: plan.RewardWeighted) -> weighted.Signal:
    match objective.baseline:
        case "dataset":
            return partial(weighted.dataset_advantage, divide_by_std=objective.divide_by_std)
        case "group":
            return partial(weighted.group_advantage, divide_by_std=objective.divide_by_std)
        case "none":
            return weighted.raw_reward
