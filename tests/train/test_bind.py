"""Every objective a plan can name, through the one place that makes a formula of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import pytest
import torch

from whet.config import pairwise as plan
from whet.config.mixture import Mixture, MixturePart, Pai
from whet.config.objective import (
    ApoZeroUnpaired,
    BradleyTerry,
    Kto,
    PairwiseObjective,
    RewardWeighted,
    SoftPreference,
    SupervisedObjective,
    UnpairedObjective,
    WeightedObjective,
)
from whet.config.supervised import Dft, Nll
from whet.errors import ConfigError
from whet.objectives import absolute, divergence, pairwise, reference_free, transport
from whet.objectives.loss import Loss
from whet.objectives.pairwise import PairLogprobs
from whet.objectives.ranking import RankedScores
from whet.objectives.unpaired import RatingLogprobs
from whet.objectives.weighted import ScoredLogprobs
from whet.train.bind import (
    pairwise_objective,
    ranking_objective,
    supervised_formula,
    unpaired_objective,
    weighted_objective,
)

LOG2 = math.log(2.0)
NUM = 5

PLAIN: list[plan.PlainPairwise] = [member() for member in get_args(plan.PlainPairwise)]
OPTIONS: list[plan.PlainPairwise] = [
    plan.Sigmoid(divergence="forward_kl"), plan.Sigmoid(divergence="js", nll_weight=1.0),
    plan.Hinge(beta=0.9, divergence="alpha", divergence_alpha=0.3), plan.Ipo(normalise="sum"), plan.Bco(shift="none"),
    plan.Aot(form="unpaired", label_smoothing=0.1), plan.Exo(beta=0.5, divergence="js"), plan.Simpo(nll_weight=0.5),
    plan.Cpo(nll_weight=0.0), plan.Discopop(beta=0.5, tau=0.7, divergence="js"),
]  # fmt: skip
PAIRWISE: list[PairwiseObjective] = [
    *PLAIN, *OPTIONS, Mixture(), Mixture(parts=(MixturePart(objective=plan.Aot()), MixturePart(objective=Nll()))),
]  # fmt: skip


def named(objective: Any) -> str:
    """The type and what is set."""
    return ",".join([objective.type, *sorted(objective.model_fields_set - {"type", "parts"})])


def random_pairs(seed: int = 0) -> PairLogprobs:
    generator = torch.Generator().manual_seed(seed)

    def some(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(NUM, dtype=torch.float64, generator=generator)

    chosen, rejected = some(-12, -3), some(-12, -3)
    return PairLogprobs(
        chosen=chosen.requires_grad_(),
        rejected=rejected.requires_grad_(),
        reference_chosen=chosen.detach() + some(-2, 2),
        reference_rejected=rejected.detach() + some(-2, 2),
        chosen_length=torch.tensor([3, 5, 2, 8, 4]),
        rejected_length=torch.tensor([4, 2, 7, 3, 5]),
    )


def gradient(total: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
    found = torch.autograd.grad(total, inputs, allow_unused=True)
    return torch.stack([torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)])


def finite_differences(value: Callable[[torch.Tensor], float], at: torch.Tensor, step: float = 1e-6) -> torch.Tensor:
    """Central differences of a function of one tensor."""
    slopes = torch.zeros_like(at)
    for place in range(at.numel()):
        move = torch.zeros_like(at)
        move.view(-1)[place] = step
        slopes.view(-1)[place] = (value(at + move) - value(at - move)) / (2 * step)
    return slopes


def test_every_objective_is_in_the_list() -> None:
    assert {type(objective) for objective in PAIRWISE} | {Pai} == set(get_args(get_args(PairwiseObjective)[0]))
    assert set(get_args(get_args(SupervisedObjective)[0])) == {Nll, Dft}
    assert set(get_args(get_args(UnpairedObjective)[0])) == {Kto, ApoZeroUnpaired}
    assert set(get_args(get_args(WeightedObjective)[0])) == {RewardWeighted, SoftPreference}


def value_with_terms_held(objective: Any, pairs: PairLogprobs) -> Callable[[PairLogprobs], float]:
    """The loss as a function whose gradient-free terms stay at their value for `pairs`, for finite differences.

    Such a term is a constant under the log-ratio, and so is the reference: it is added there.
    """
    match objective:
        case plan.Bco(beta=beta, shift="batch"):
            mean = torch.cat([pairs.chosen_ratio, pairs.rejected_ratio]).detach().mean()
            return lambda moved: absolute.bco(with_references_raised(moved, mean, mean), beta=beta).total.item()
        case plan.KtoPair(beta=beta):
            kl_w, kl_l = (ratio.detach().mean().clamp(min=0.0) for ratio in (pairs.chosen_ratio, pairs.rejected_ratio))
            assert kl_w > 0 or kl_l > 0
            return lambda moved: absolute.apo_zero(with_references_raised(moved, kl_l, kl_w), beta=beta).total.item()
        case Mixture(parts=parts):
            terms = [(part.weight, value_with_terms_held(part.objective, pairs)) for part in parts]
            return lambda moved: sum(weight * term(moved) for weight, term in terms)
        case Nll():
            return lambda moved: -(moved.chosen / moved.chosen_length).sum().item()
        case _:
            return lambda moved: pairwise_objective(objective).formula(moved).total.item()


def with_references_raised(pairs: PairLogprobs, chosen: torch.Tensor, rejected: torch.Tensor) -> PairLogprobs:
    return replace(
        pairs,
        reference_chosen=pairs.reference_chosen + chosen,
        reference_rejected=pairs.reference_rejected + rejected,
    )


@pytest.mark.parametrize("objective", PAIRWISE, ids=named)
def test_gradient_is_the_slope(objective: PairwiseObjective) -> None:
    pairs = random_pairs()
    held = value_with_terms_held(objective, pairs)
    loss = pairwise_objective(objective).formula(pairs)
    assert loss.total.item() == pytest.approx(held(pairs), rel=1e-12)
    found = gradient(loss.total, pairs.chosen, pairs.rejected)
    policy = torch.stack([pairs.chosen, pairs.rejected]).detach()
    expected = finite_differences(lambda at: held(replace(pairs, chosen=at[0], rejected=at[1])), policy)
    scale = float(expected.abs().max())
    assert scale > 1e-6
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-6)


@pytest.mark.parametrize("objective", PAIRWISE, ids=named)
def test_micro_batches_make_the_gradient_of_the_step(objective: PairwiseObjective) -> None:
    """Coupled formulas get all pairs with the others detached, the rest only their own; either way it adds up."""
    pairs, bound = random_pairs(), pairwise_objective(objective)
    whole = gradient(bound.formula(pairs).total, pairs.chosen, pairs.rejected)
    parts = torch.zeros_like(whole)
    for own in (slice(0, 2), slice(2, 3), slice(3, NUM)):
        parts += gradient(bound.formula(seen_by(bound.coupled, pairs, own)).total, pairs.chosen, pairs.rejected)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)


def seen_by(coupled: bool, pairs: PairLogprobs, own: slice) -> PairLogprobs:
    if not coupled:
        return PairLogprobs(**{name: getattr(pairs, name)[own] for name in pairs.__dataclass_fields__})
    mine = torch.zeros(NUM, dtype=torch.bool)
    mine[own] = True
    return replace(
        pairs,
        chosen=torch.where(mine, pairs.chosen, pairs.chosen.detach()),
        rejected=torch.where(mine, pairs.rejected, pairs.rejected.detach()),
    )


@pytest.mark.parametrize("objective", PAIRWISE, ids=named)
def test_coupled_says_what_is_so(objective: PairwiseObjective) -> None:
    """Whether a formula's sum over pairs taken one by one is its value over all of them."""
    pairs, bound = random_pairs(), pairwise_objective(objective)
    one_by_one = sum(bound.formula(seen_by(False, pairs, slice(i, i + 1))).total.item() for i in range(NUM))
    agrees = one_by_one == pytest.approx(bound.formula(pairs).total.item(), rel=1e-10)
    assert agrees is not bound.coupled


@pytest.mark.parametrize("objective", PAIRWISE, ids=named)
def test_needs_reference_says_what_is_so(objective: PairwiseObjective) -> None:
    pairs, bound = random_pairs(), pairwise_objective(objective)
    unknown = torch.full((NUM,), math.nan, dtype=torch.float64)
    found = bound.formula(replace(pairs, reference_chosen=unknown, reference_rejected=unknown)).total.item()
    assert math.isnan(found) is bound.needs_reference


@pytest.mark.parametrize(
    ("objective", "constant"),
    [
        (plan.Sigmoid(), LOG2), (plan.Cdpo(), LOG2), (plan.Robust(), LOG2), (plan.Hinge(), 1.0),
        (plan.Exo(), 2.76123071), (plan.Discopop(), (LOG2 + 1) / 2), (plan.Ipo(), 25.0), (plan.SigmoidNorm(), LOG2),
        (plan.Nca(), 2 * LOG2), (plan.Bco(), 2 * LOG2), (plan.Sppo(), 500000.0), (plan.ApoZero(), 1.0),
        (plan.ApoDown(), 1.0), (plan.KtoPair(), 1.0), (plan.Aot(), LOG2), (plan.Sigmoid(divergence="js"), LOG2),
    ],
    ids=lambda value: named(value) if not isinstance(value, float) else "",
)  # fmt: skip
def test_published_settings_at_the_reference(objective: PairwiseObjective, constant: float) -> None:
    pairs = random_pairs()
    same = replace(pairs, reference_chosen=pairs.chosen.detach(), reference_rejected=pairs.rejected.detach())
    assert pairwise_objective(objective).formula(same).total.item() / NUM == pytest.approx(constant, rel=1e-7)


@pytest.mark.parametrize("objective", PAIRWISE, ids=named)
def test_every_pair_has_rewards(objective: PairwiseObjective) -> None:
    metrics = pairwise_objective(objective).formula(random_pairs()).metrics
    expected = {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"}
    assert expected <= metrics.keys()
    assert not any(metric.total.requires_grad for metric in metrics.values())
    assert all(metric.total.dim() == 0 for metric in metrics.values())


E = 0.2
NUMBERS: list[tuple[PairwiseObjective, Callable[[PairLogprobs], Loss]]] = [
    (plan.Sigmoid(beta=0.3, label_smoothing=E), partial(pairwise.sigmoid, beta=0.3, label_smoothing=E)),
    (plan.Robust(beta=0.3, label_smoothing=E), partial(pairwise.robust, beta=0.3, label_smoothing=E)),
    (plan.Hinge(beta=0.3), partial(pairwise.hinge, beta=0.3)),
    (plan.Exo(beta=0.3, label_smoothing=E), partial(pairwise.exo, beta=0.3, label_smoothing=E)),
    (plan.Discopop(beta=0.3, tau=0.4), partial(pairwise.discopop, beta=0.3, tau=0.4)),
    (plan.Ipo(tau=0.3), partial(pairwise.ipo_length, tau=0.3)),
    (plan.Ipo(tau=0.3, normalise="sum"), partial(pairwise.ipo_sum, tau=0.3)),
    (plan.SigmoidNorm(beta=3.0, label_smoothing=E), partial(pairwise.sigmoid_norm, beta=3.0, label_smoothing=E)),
    (plan.Aot(beta=0.3, label_smoothing=E), partial(transport.aot, beta=0.3, label_smoothing=E)),
    (plan.Aot(beta=0.3, form="unpaired"), partial(transport.aot_unpaired, beta=0.3)),
    (plan.Nca(beta=0.3), partial(absolute.nca, beta=0.3)),
    (plan.Bco(beta=0.3), partial(absolute.bco_shifted, beta=0.3)),
    (plan.Bco(beta=0.3, shift="none"), partial(absolute.bco, beta=0.3)),
    (plan.Sppo(beta=0.3), partial(absolute.sppo, beta=0.3)),
    (plan.ApoZero(beta=0.3), partial(absolute.apo_zero, beta=0.3)),
    (plan.ApoDown(beta=0.3), partial(absolute.apo_down, beta=0.3)),
    (plan.KtoPair(beta=0.3), partial(absolute.kto_pair, beta=0.3)),
    (
        plan.Simpo(beta=3.0, gamma=0.7, label_smoothing=E),
        partial(reference_free.simpo, beta=3.0, gamma=0.7, label_smoothing=E),
    ),
    (
        plan.Cpo(beta=0.3, label_smoothing=E, nll_weight=0.0),
        partial(reference_free.cpo, beta=0.3, label_smoothing=E),
    ),
    (plan.Orpo(odds_weight=0.3, nll_weight=0.0), partial(reference_free.orpo, odds_weight=0.3)),
]


@pytest.mark.parametrize(
    ("objective", "formula"), NUMBERS, ids=lambda value: named(value) if hasattr(value, "type") else ""
)
def test_numbers_reach_their_formula(objective: PairwiseObjective, formula: Callable[[PairLogprobs], Loss]) -> None:
    pairs = random_pairs()
    plain = formula(pairs).total.item()
    assert pairwise_objective(objective).formula(pairs).total.item() == plain
    more = pairwise_objective(objective.model_copy(update={"nll_weight": 0.4})).formula(pairs)
    nll = sum((-pairs.chosen / pairs.chosen_length).tolist())
    assert more.total.item() == pytest.approx(plain + 0.4 * nll, rel=1e-12)
    assert more.metrics["nll_loss"].total.item() == pytest.approx(nll, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "slope"),
    [
        ("reverse_kl", divergence.reverse_kl), ("forward_kl", divergence.forward_kl), ("js", divergence.js),
        ("alpha", partial(divergence.alpha_divergence, alpha=0.3)),
    ],
)  # fmt: skip
def test_divergences_reach_their_formula(name: Any, slope: divergence.Slope) -> None:
    pairs = random_pairs()
    for member, formula in ((plan.Sigmoid, pairwise.sigmoid), (plan.Hinge, pairwise.hinge)):
        found = pairwise_objective(member(beta=0.3, divergence=name, divergence_alpha=0.3)).formula(pairs)
        assert found.total.item() == formula(pairs, beta=0.3, slope=slope).total.item()


def test_conservative_dpo_is_smoothed_dpo() -> None:
    one, two = (pairwise_objective(o).formula(random_pairs()) for o in (plan.Cdpo(), plan.Sigmoid(label_smoothing=0.1)))
    assert one.total.item() == two.total.item()


def test_the_default_mixture_is_mpo() -> None:
    pairs = random_pairs()
    loss = pairwise_objective(Mixture()).formula(pairs)
    dpo, bco = (pairwise_objective(o).formula(pairs).total.item() for o in (plan.Sigmoid(beta=0.1), plan.Bco(beta=0.1)))
    nll = sum((-pairs.chosen / pairs.chosen_length).tolist())
    assert loss.total.item() == pytest.approx(0.8 * dpo + 0.2 * bco + nll, rel=1e-12)
    assert {"loss/sigmoid", "loss/bco", "loss/nll"} <= loss.metrics.keys()


def test_a_type_may_stand_twice_in_a_mixture() -> None:
    parts = tuple(MixturePart(objective=plan.Sigmoid(beta=beta), weight=1.0) for beta in (0.1, 1.0))
    metrics = pairwise_objective(Mixture(parts=parts)).formula(random_pairs()).metrics
    assert {"loss/sigmoid-1", "loss/sigmoid-2"} <= metrics.keys()
    assert metrics["loss/sigmoid-1"].total.item() != metrics["loss/sigmoid-2"].total.item()


@pytest.mark.filterwarnings("ignore:objective `pai`")
@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ("kto_pair", plan.KtoPair()), ("bco", plan.Bco()), ("exo", plan.Exo()), ("nca", plan.Nca()),
        ("apo_zero", plan.ApoZero()), ("apo_down", plan.ApoDown()),
    ],
)  # fmt: skip
def test_pai_is_what_it_means(means: Any, expected: PairwiseObjective) -> None:
    pairs, found = random_pairs(), pairwise_objective(Pai(means=means))
    bound = pairwise_objective(expected)
    assert found.formula(pairs).total.item() == bound.formula(pairs).total.item()
    assert (found.coupled, found.needs_reference) == (bound.coupled, bound.needs_reference)


def test_supervised_gradients() -> None:
    logprobs = torch.log(torch.tensor([0.5, 0.25, 0.9], dtype=torch.float64)).requires_grad_()
    weights = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    for objective, factor in ((Nll(), torch.ones(3)), (Dft(), torch.tensor([0.5, 0.25, 0.9]))):
        found = gradient(supervised_formula(objective)(logprobs, weights).total, logprobs)[0]
        torch.testing.assert_close(found, -weights * factor.double())


@pytest.mark.parametrize("objective", [Kto(), Kto(desirable_weight=1.3, beta=0.7), ApoZeroUnpaired()], ids=named)
def test_unpaired_gradient_is_the_slope(objective: UnpairedObjective) -> None:
    bound = unpaired_objective(objective)
    assert bound.needs_kl is isinstance(objective, Kto)
    policy = torch.tensor([-3.0, -5.0, -4.0], dtype=torch.float64, requires_grad=True)

    def loss(at: torch.Tensor) -> torch.Tensor:
        rows = RatingLogprobs(
            policy=at, reference=torch.tensor([-4.0, -4.5, -4.0], dtype=torch.float64),
            good=torch.tensor([True, False, False]), kl=torch.tensor(0.2, dtype=torch.float64),
        )  # fmt: skip
        return bound.formula(rows).total

    expected = finite_differences(lambda at: loss(at).item(), policy.detach())
    torch.testing.assert_close(gradient(loss(policy), policy)[0], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("objective", [BradleyTerry(), BradleyTerry(center=0.1)], ids=named)
def test_ranking_gradient_is_the_slope(objective: BradleyTerry) -> None:
    scores = torch.tensor([0.3, -1.0, 0.8, 0.1, 0.2], dtype=torch.float64, requires_grad=True)

    def loss(at: torch.Tensor) -> torch.Tensor:
        rows = RankedScores(
            scores=at, groups=torch.tensor([0, 0, 0, 1, 1]), ranks=torch.tensor([1.0, 3.0, 2.0, 1.0, 2.0]),
            margins=torch.tensor([0.4, 0.0, 0.1, 0.5, 0.0], dtype=torch.float64),
        )  # fmt: skip
        return ranking_objective(objective)(rows).total

    expected = finite_differences(lambda at: loss(at).item(), scores.detach())
    torch.testing.assert_close(gradient(loss(scores), scores)[0], expected, rtol=1e-6, atol=1e-9)


WEIGHTED: list[tuple[WeightedObjective, Any]] = [
    (RewardWeighted(), "reward"), (RewardWeighted(baseline="group", divide_by_std=True, kl_weight=0.5), "reward"),
    (RewardWeighted(baseline="none", normalise="length"), "reward"),
    (SoftPreference(), "weight"), (SoftPreference(temperature=2.0, kl_weight=0.5, normalise="length"), "reward"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("objective", "kind"), WEIGHTED, ids=lambda value: value if isinstance(value, str) else named(value)
)
def test_weighted_gradient_is_the_slope(objective: WeightedObjective, kind: Any) -> None:
    bound = weighted_objective(objective, kind)
    assert bound.needs_reference is (objective.kl_weight > 0)
    assert bound.needs_moments is (isinstance(objective, RewardWeighted) and objective.baseline == "dataset")
    policy = torch.tensor([-6.0, -4.0, -2.0, -5.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-3.0, -4.0, -3.0, -5.5], dtype=torch.float64)

    def loss(at: torch.Tensor) -> torch.Tensor:
        rows = ScoredLogprobs(
            policy=at, reference=reference if bound.needs_reference else None, lengths=torch.tensor([3, 2, 2, 5]),
            groups=torch.tensor([0, 0, 0, 1]), values=torch.tensor([0.5, 0.3, 0.2, 1.0], dtype=torch.float64), mean=0.1,
        )  # fmt: skip
        return bound.formula(rows).total

    expected = finite_differences(lambda at: loss(at).item(), policy.detach())
    torch.testing.assert_close(gradient(loss(policy), policy)[0], expected, rtol=1e-6, atol=1e-9)


def test_weights_are_no_rewards() -> None:
    with pytest.raises(ConfigError, match=r"these rows carry weights.*soft_preference"):
        weighted_objective(RewardWeighted(), "weight")
