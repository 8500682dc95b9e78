"""TRL 1.16's pairwise losses on the same token log-probs; skipped where TRL is not installed.

`DPOTrainer._compute_loss` is called with stand-ins for `self` and for the model. It averages over the pairs of a
micro-batch, our sums are divided by their number. Where the definitions differ the difference is asserted:

- `sigmoid` and `sigmoid_norm` of TRL take no label smoothing; ours do.
- `bco` takes off the step's mean reward by default, TRL's `bco_pair` nothing: `shift: none`.
- alpha divergence: TRL's coefficient is 1 - alpha of the f-DPO paper, which is ours. At 0.5 they agree.
- The likelihood term: TRL's `sft` is a mean over the tokens of the micro-batch, ours is a mean over each response.
- `kto_pair`, `simpo`, `cpo` and `orpo` are not in DPOTrainer; see `test_objectives`.
- Names: TRL's beta is tau in `ipo`; `exo_pair`, `nca_pair`, `bco_pair`, `sppo_hard`, `aot_unpaired` are ours without
  the ending, and `aot` with `form: unpaired`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.oracles.stand_ins import Tokens, assert_same, trainer
from whet.config import pairwise as plan
from whet.config.mixture import Mixture, MixturePart
from whet.config.objective import PairwiseObjective
from whet.config.supervised import Nll
from whet.objectives.loss import Loss
from whet.train.bind import pairwise_objective

trl = pytest.importorskip("trl", minversion="1.16.0")

LENGTHS = [4, 9, 2, 6, 1, 7, 8, 3, 5, 5]
"""Five chosen responses, then five rejected ones."""
EVEN = [5, 5, 5, 5, 5, 2, 9, 4, 6, 3]
"""The chosen ones of one length."""


def reference_of(tokens: Tokens, spread: float = 1.5) -> torch.Tensor:
    """Log-probs some nats away from the policy's, so that no loss is flat."""
    noise = torch.randn(len(tokens.lengths), generator=torch.Generator().manual_seed(7))
    return tokens.sums.detach() + spread * noise


def theirs(tokens: Tokens, reference: torch.Tensor, loss_type: str | list[str], beta: float, **more: Any) -> Any:
    """TRL's loss and what it logged."""
    types = [loss_type] if isinstance(loss_type, str) else loss_type
    settings = {
        "ld_alpha": None, "precompute_ref_logps": True, "f_divergence_type": "reverse_kl", "label_smoothing": 0.0,
        "loss_weights": [1.0] * len(types), "use_weighting": False, "args": SimpleNamespace(discopop_tau=0.05),
        "f_alpha_divergence_coef": 0.5,
    }  # fmt: skip
    stub = trainer(loss_types=types, beta=beta, **{**settings, **more})
    chosen, rejected = reference.chunk(2)
    inputs = {**tokens.inputs(), "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    loss = trl.DPOTrainer._compute_loss(stub, tokens.model, inputs, False)
    return loss, {name: values[0] for name, values in stub._metrics["train"].items() if values}


def ours(tokens: Tokens, reference: torch.Tensor, objective: PairwiseObjective) -> Loss:
    return pairwise_objective(objective).formula(tokens.pairs(reference))


SAME: list[tuple[plan.PlainPairwise, str, float, dict[str, Any]]] = [
    (plan.Sigmoid(beta=0.3), "sigmoid", 0.3, {}),
    (plan.Hinge(beta=0.3), "hinge", 0.3, {}),
    (plan.Ipo(tau=0.7), "ipo", 0.7, {}),
    (plan.Robust(beta=0.3, label_smoothing=0.1), "robust", 0.3, {"label_smoothing": 0.1}),
    (plan.Exo(beta=0.3, label_smoothing=1e-3), "exo_pair", 0.3, {"label_smoothing": 1e-3}),
    (plan.Nca(beta=0.3), "nca_pair", 0.3, {}),
    (plan.Bco(beta=0.3, shift="none"), "bco_pair", 0.3, {}),
    (plan.Sppo(beta=0.3), "sppo_hard", 0.3, {}),
    (plan.Aot(beta=0.3), "aot", 0.3, {}),
    (plan.Aot(beta=0.3, label_smoothing=0.2), "aot", 0.3, {"label_smoothing": 0.2}),
    (plan.Aot(beta=0.3, form="unpaired"), "aot_unpaired", 0.3, {}),
    (plan.Aot(beta=0.3, form="unpaired", label_smoothing=0.2), "aot_unpaired", 0.3, {"label_smoothing": 0.2}),
    (plan.ApoZero(beta=0.3), "apo_zero", 0.3, {}),
    (plan.ApoDown(beta=0.3), "apo_down", 0.3, {}),
    (plan.Discopop(beta=0.05), "discopop", 0.05, {}),
    (plan.Discopop(beta=0.3, tau=0.4), "discopop", 0.3, {"args": SimpleNamespace(discopop_tau=0.4)}),
    (plan.SigmoidNorm(beta=5.0), "sigmoid_norm", 5.0, {}),
]


@pytest.mark.parametrize(("objective", "loss_type", "beta", "more"), SAME, ids=lambda value: getattr(value, "type", ""))
@pytest.mark.parametrize("seed", [0, 1])
def test_same_definition(
    objective: plan.PlainPairwise, loss_type: str, beta: float, more: dict[str, Any], seed: int
) -> None:
    tokens = Tokens.random(LENGTHS, seed)
    reference = reference_of(tokens)
    expected, logged = theirs(tokens, reference, loss_type, beta, **more)
    found = ours(tokens, reference, objective)
    assert_same(found.total / 5, expected, tokens.logprobs)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"):
        metric = found.metrics[name]
        assert float(metric.total) / metric.count == pytest.approx(logged[name], rel=1e-5, abs=1e-5), name


DIVERGENCES = [("forward_kl", "forward_kl"), ("js", "js_divergence"), ("alpha", "alpha_divergence")]
OF_DIFFERENCE: list[tuple[type[Any], str, dict[str, Any]]] = [
    (plan.Sigmoid, "sigmoid", {}), (plan.Hinge, "hinge", {}), (plan.Robust, "robust", {"label_smoothing": 0.1}),
    (plan.Exo, "exo_pair", {"label_smoothing": 1e-3}), (plan.Discopop, "discopop", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "their_name"), DIVERGENCES, ids=[name for name, _ in DIVERGENCES])
@pytest.mark.parametrize(("member", "loss_type", "more"), OF_DIFFERENCE, ids=[one[1] for one in OF_DIFFERENCE])
def test_divergences(member: type[Any], loss_type: str, more: dict[str, Any], name: str, their_name: str) -> None:
    tokens = Tokens.random(LENGTHS, 2)
    reference = reference_of(tokens, spread=0.7)
    found = ours(tokens, reference, member(beta=0.3, divergence=name))
    expected, _ = theirs(tokens, reference, loss_type, 0.3, f_divergence_type=their_name, **more)
    assert_same(found.total / 5, expected, tokens.logprobs)


def test_their_alpha_is_one_minus_the_papers() -> None:
    tokens = Tokens.random(LENGTHS, 2)
    reference = reference_of(tokens, spread=0.7)
    found = ours(tokens, reference, plan.Sigmoid(beta=0.3, divergence="alpha", divergence_alpha=0.3)).total / 5
    alpha = {"f_divergence_type": "alpha_divergence"}
    turned, _ = theirs(tokens, reference, "sigmoid", 0.3, f_alpha_divergence_coef=0.7, **alpha)
    straight, _ = theirs(tokens, reference, "sigmoid", 0.3, f_alpha_divergence_coef=0.3, **alpha)
    assert_same(found, turned, tokens.logprobs)
    assert found.item() != pytest.approx(straight.item(), rel=1e-3)


def test_their_sigmoid_losses_ignore_label_smoothing() -> None:
    tokens = Tokens.random(LENGTHS, 3)
    reference = reference_of(tokens)
    for member, loss_type in ((plan.Sigmoid, "sigmoid"), (plan.SigmoidNorm, "sigmoid_norm")):
        smoothed, _ = theirs(tokens, reference, loss_type, 0.3, label_smoothing=0.2)
        plain, _ = theirs(tokens, reference, loss_type, 0.3)
        assert smoothed.item() == plain.item()
        found = ours(tokens, reference, member(beta=0.3, label_smoothing=0.2)).total / 5
        assert found.item() != pytest.approx(plain.item(), rel=1e-3)


@pytest.mark.parametrize(("member", "loss_type"), [(plan.Sigmoid, "sigmoid"), (plan.SigmoidNorm, "sigmoid_norm")])
def test_label_smoothing_is_a_mean_of_both_orders(member: type[Any], loss_type: str) -> None:
    """What TRL no longer has, out of what it has: its loss of the pairs and of the pairs turned around."""
    tokens = Tokens.random(LENGTHS, 3)
    reference = reference_of(tokens)
    turned = Tokens(torch.cat(tokens.logprobs.chunk(2)[::-1]), torch.cat(tokens.lengths.chunk(2)[::-1]))
    straight, _ = theirs(tokens, reference, loss_type, 0.3)
    other, _ = theirs(turned, torch.cat(reference.chunk(2)[::-1]), loss_type, 0.3)
    found = ours(tokens, reference, member(beta=0.3, label_smoothing=0.2)).total / 5
    assert_same(found, 0.8 * straight + 0.2 * other, tokens.logprobs)


def test_bco_shift_is_a_move_of_their_reference() -> None:
    """TRL 1.16 has no shift; with it taken off the references its loss is ours."""
    tokens = Tokens.random(LENGTHS, 4)
    reference = reference_of(tokens) - 2.0
    shift = (tokens.sums - reference).mean().detach()
    found = ours(tokens, reference, plan.Bco(beta=0.3)).total / 5
    expected, _ = theirs(tokens, reference + shift, "bco_pair", 0.3)
    plain, _ = theirs(tokens, reference, "bco_pair", 0.3)
    assert_same(found, expected, tokens.logprobs)
    assert found.item() != pytest.approx(plain.item(), rel=1e-2)


def mpo() -> Mixture:
    """MPO without BCO's shift, as TRL has it."""
    parts = ((plan.Sigmoid(beta=0.1), 0.8), (plan.Bco(beta=0.1, shift="none"), 0.2), (Nll(), 1.0))
    return Mixture(parts=tuple(MixturePart(objective=objective, weight=weight) for objective, weight in parts))


def test_mixtures_where_chosen_responses_are_of_one_length() -> None:
    tokens = Tokens.random(EVEN, 5)
    reference = reference_of(tokens)
    found = ours(tokens, reference, mpo()).total / 5
    expected, _ = theirs(tokens, reference, ["sigmoid", "bco_pair", "sft"], 0.1, loss_weights=[0.8, 0.2, 1.0])
    assert_same(found, expected, tokens.logprobs)
    rpo, _ = theirs(tokens, reference, ["sigmoid", "sft"], 0.1, loss_weights=[1.0, 0.7])
    assert_same(ours(tokens, reference, plan.Sigmoid(nll_weight=0.7)).total / 5, rpo, tokens.logprobs)


def test_their_likelihood_term_counts_tokens_of_a_micro_batch_ours_responses() -> None:
    tokens = Tokens.random(LENGTHS, 5)
    chosen, lengths = tokens.sums[:5], tokens.lengths[:5]
    reference = reference_of(tokens)
    expected, _ = theirs(tokens, reference, "sft", 0.1)
    found = ours(tokens, reference, Mixture(parts=(MixturePart(objective=Nll()),))).total / 5
    assert expected.item() == pytest.approx((-chosen.sum() / lengths.sum()).item(), rel=1e-5)
    assert found.item() == pytest.approx((-chosen / lengths).mean().item(), rel=1e-5)
    assert found.item() != pytest.approx(expected.item(), rel=1e-2)


def test_what_they_no_longer_have() -> None:
    tokens = Tokens.random(LENGTHS, 6)
    for loss_type in ("kto_pair", "pai"):
        with pytest.raises(ValueError, match="Unknown loss type"):
            theirs(tokens, reference_of(tokens), loss_type, 0.1)


def test_a_tie_counts_half_with_us_and_nothing_with_them() -> None:
    tokens = Tokens(torch.full((10, 9), -0.5, requires_grad=True), torch.tensor(LENGTHS))
    reference = tokens.sums.detach()
    _, logged = theirs(tokens, reference, "sigmoid", 0.1)
    accuracy = ours(tokens, reference, plan.Sigmoid()).metrics["rewards/accuracies"]
    assert logged["rewards/accuracies"] == 0.0
    assert float(accuracy.total) / accuracy.count == 0.5
