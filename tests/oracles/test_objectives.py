"""TRL 1.16's losses without a reference, over single responses, of reward models and of SFT; skipped where TRL is not.

Its own functions on plain tensors. Where the definitions differ the difference is asserted:

- CPO: TRL's likelihood term is a mean over the tokens of the micro-batch, ours over each response.
- ORPO: TRL's likelihood term counts the prompt's tokens as well; its loss is negative log-odds times `beta`, our
  `odds_weight`.
- SimPO: the same; TRL hands the averaged log-probs over.
- KTO, APO-zero without pairs, Bradley-Terry on pairs, DFT: the same. TRL has no rankings; a ranking of three is the
  mean of its three pairs. A tie of scores is lost in TRL and half a win with us.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.oracles.stand_ins import PROMPT, Tokens, assert_same, trainer
from whet.config import pairwise as plan
from whet.config.objective import ApoZeroUnpaired, BradleyTerry, Kto
from whet.config.supervised import Dft, Nll
from whet.objectives.ranking import RankedScores
from whet.objectives.unpaired import RatingLogprobs
from whet.train.bind import pairwise_objective, ranking_objective, supervised_formula, unpaired_objective

trl = pytest.importorskip("trl", minversion="1.16.0")

LENGTHS = [4, 9, 2, 6, 1, 7, 8, 3, 5, 5]


def value(loss: Any, name: str) -> float:
    metric = loss.metrics[name]
    return float(metric.total) / metric.count


@pytest.mark.parametrize(
    ("objective", "settings", "averaged"),
    [
        (plan.Cpo(beta=0.3, nll_weight=0.0), {"loss_type": "sigmoid", "beta": 0.3, "label_smoothing": 0.0}, False),
        (
            plan.Cpo(beta=0.3, nll_weight=0.0, label_smoothing=0.1),
            {"loss_type": "sigmoid", "beta": 0.3, "label_smoothing": 0.1}, False,
        ),
        (plan.Simpo(), {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "label_smoothing": 0.0}, True),
        (
            plan.Simpo(beta=2.5, gamma=0.3, label_smoothing=0.1),
            {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 0.3, "label_smoothing": 0.1}, True,
        ),
    ],
    ids=["cpo", "cpo-smoothed", "simpo", "simpo-smoothed"],
)  # fmt: skip
def test_cpo_and_simpo(objective: plan.WithoutReference, settings: dict[str, Any], averaged: bool) -> None:
    from trl.experimental.cpo import CPOTrainer

    tokens = Tokens.random(LENGTHS, 0)
    given = tokens.sums / tokens.lengths if averaged else tokens.sums
    losses, chosen_rewards, rejected_rewards = CPOTrainer.cpo_loss(trainer(alpha=0.0, **settings), *given.chunk(2))
    found = pairwise_objective(objective).formula(tokens.pairs(torch.zeros(10)))
    assert_same(found.total / 5, losses.mean(), tokens.logprobs)
    assert value(found, "rewards/chosen") == pytest.approx(chosen_rewards.mean().item(), rel=1e-5)
    assert value(found, "rewards/rejected") == pytest.approx(rejected_rewards.mean().item(), rel=1e-5)


def test_orpo() -> None:
    from trl.experimental.orpo import ORPOTrainer

    tokens = Tokens.random(LENGTHS, 1)
    losses, chosen_rewards, _, ratio, chosen_odds = ORPOTrainer.odds_ratio_loss(
        trainer(beta=0.25), *(tokens.sums / tokens.lengths).chunk(2)
    )
    found = pairwise_objective(plan.Orpo(odds_weight=0.25, nll_weight=0.0)).formula(tokens.pairs(torch.zeros(10)))
    assert_same(found.total / 5, -losses.mean(), tokens.logprobs)
    assert value(found, "rewards/chosen") == pytest.approx(chosen_rewards.mean().item(), rel=1e-5)
    assert value(found, "log_odds_ratio") == pytest.approx(ratio.item(), rel=1e-5)
    assert value(found, "log_odds_chosen") == pytest.approx(chosen_odds.item(), rel=1e-5)


def test_likelihood_terms_of_orpo_and_cpo_differ() -> None:
    """TRL's whole forward passes over made-up logits: what it takes as the chosen response's likelihood, and we."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    generator = torch.Generator().manual_seed(2)
    lengths, vocabulary = torch.tensor(LENGTHS), 11
    width = PROMPT + int(lengths.max())
    ids = torch.randint(vocabulary, (10, width), generator=generator)
    real = torch.arange(width)[None, :] < PROMPT + lengths[:, None]
    answers = real & (torch.arange(width) >= PROMPT)
    logits = torch.randn(10, width, vocabulary, generator=generator)
    batch = {
        f"{side}_{name}": values[half]
        for side, half in (("chosen", slice(0, 5)), ("rejected", slice(5, 10)))
        for name, values in (
            ("input_ids", ids), ("attention_mask", real.long()), ("labels", ids.masked_fill(~answers, -100)),
        )
    }  # fmt: skip
    token_logprobs = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    chosen, chosen_real, chosen_answers = token_logprobs[:5], real[:5, 1:], answers[:5, 1:]
    likelihood = {}
    for name, family, more in (
        ("cpo", CPOTrainer, {"cpo_alpha": 1.0, "loss_type": "sigmoid"}),
        ("orpo", ORPOTrainer, {}),
    ):
        stub = trainer(
            is_encoder_decoder=False, padding_value=0, pad_token_id=0,
            concatenated_inputs=family.concatenated_inputs, get_batch_logps=family.get_batch_logps, **more,
        )  # fmt: skip
        likelihood[name] = family.concatenated_forward(stub, lambda *_, **__: SimpleNamespace(logits=logits), batch)[4]
    assert likelihood["cpo"].item() == pytest.approx(-chosen[chosen_answers].mean().item(), rel=1e-5)
    assert likelihood["orpo"].item() == pytest.approx(-chosen[chosen_real].mean().item(), rel=1e-5)
    ours = (-(chosen * chosen_answers).sum(1) / lengths[:5]).mean().item()
    sums = (token_logprobs * answers[:, 1:]).sum(1)
    rows = Tokens(sums[:, None], torch.ones(10, dtype=torch.long)).pairs(torch.zeros(10))
    whole = type(rows)(
        **{name: getattr(rows, name) for name in rows.__dataclass_fields__ if not name.endswith("length")},
        chosen_length=lengths[:5], rejected_length=lengths[5:],
    )  # fmt: skip
    assert value(pairwise_objective(plan.Orpo()).formula(whole), "nll_loss") == pytest.approx(ours, rel=1e-5)
    for other in likelihood.values():
        assert other.item() != pytest.approx(ours, rel=1e-3)


@pytest.mark.parametrize("shifted", [2.0, -2.0], ids=["kl", "kl clipped at zero"])
@pytest.mark.parametrize(
    ("objective", "loss_type"),
    [
        (Kto(beta=0.3), "kto"), (Kto(beta=0.3, desirable_weight=1.4, undesirable_weight=0.6), "kto"),
        (ApoZeroUnpaired(beta=0.3, undesirable_weight=0.7), "apo_zero_unpaired"),
    ],
    ids=["kto", "kto-weighted", "apo_zero_unpaired"],
)  # fmt: skip
def test_kto(objective: Kto | ApoZeroUnpaired, loss_type: str, shifted: float) -> None:
    tokens, noise = Tokens.random(LENGTHS, 3), torch.Generator().manual_seed(4)
    reference = tokens.sums.detach() + torch.randn(10, generator=noise)
    good = torch.tensor([True, False, False, True, True, False, True, True, False, True])
    mismatched = torch.randn(10, generator=noise) + shifted
    stub = trainer(
        loss_type=loss_type, beta=0.3, desirable_weight=objective.desirable_weight,
        undesirable_weight=objective.undesirable_weight, precompute_ref_logps=True, calculate_KL=loss_type == "kto",
        _compute_kl_logps=lambda model, batch: mismatched if loss_type == "kto" else None,
    )  # fmt: skip
    inputs = {**tokens.inputs(), "label": good, "ref_logps": reference, "ref_KL_logps": torch.zeros(10)}
    expected = trl.KTOTrainer._compute_loss(stub, tokens.model, inputs, False)
    kl = mismatched.mean().clamp(min=0)
    found = unpaired_objective(objective).formula(
        RatingLogprobs(policy=tokens.sums, reference=reference, good=good, kl=kl)
    )
    assert_same(found.total / 10, expected, tokens.logprobs)
    logged = stub._metrics["train"]
    for name in ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"):
        assert value(found, name) == pytest.approx(logged[name][0], rel=1e-5, abs=1e-6), name
    if loss_type == "kto":
        assert value(found, "kl") == pytest.approx(logged["kl"][0], rel=1e-5)


def pair_scores() -> torch.Tensor:
    return torch.randn(10, generator=torch.Generator().manual_seed(5)).requires_grad_()


def reward_loss(scores: torch.Tensor, center: float | None, **inputs: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """TRL's loss of [2P] scores, chosen ones first."""
    stub = trainer(args=SimpleNamespace(center_rewards_coefficient=center))
    given = {"attention_mask": torch.ones(len(scores), 1), **inputs}

    def model(**_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=scores[:, None])

    return trl.RewardTrainer.compute_loss(stub, model, given), stub._metrics["train"]


@pytest.mark.parametrize("center", [0.0, 0.01])
@pytest.mark.parametrize("margin", [False, True])
def test_bradley_terry(center: float, margin: bool) -> None:
    scores = pair_scores()
    margins = torch.tensor([0.3, 0.0, 1.0, 0.1, 2.0])
    expected, logged = reward_loss(scores, center or None, **({"margin": margins} if margin else {}))
    found = ranking_objective(BradleyTerry(center=center))(
        RankedScores(
            scores=scores, groups=torch.arange(5).repeat(2), ranks=torch.tensor([1.0] * 5 + [2.0] * 5),
            margins=torch.cat([margins, torch.zeros(5)]) if margin else None,
        )
    )  # fmt: skip
    assert_same(found.total / 5, expected, scores)
    for name in ("accuracy", "margin", "mean_reward"):
        assert value(found, name) == pytest.approx(logged[name][0], rel=1e-5), name


def test_a_ranking_is_the_mean_of_their_pairs() -> None:
    scores = pair_scores()[:3]
    better, worse = torch.tensor([0, 0, 2]), torch.tensor([1, 2, 1])
    expected, _ = reward_loss(torch.cat([scores[better], scores[worse]]), 0.01)
    rows = RankedScores(scores=scores, groups=torch.zeros(3, dtype=torch.long), ranks=torch.tensor([1.0, 3.0, 2.0]))
    found = ranking_objective(BradleyTerry(center=0.01))(rows)
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_tie_of_scores() -> None:
    scores = torch.zeros(2)
    _, logged = reward_loss(scores, None)
    found = ranking_objective(BradleyTerry())(
        RankedScores(scores=scores, groups=torch.zeros(2, dtype=torch.long), ranks=torch.tensor([1.0, 2.0]))
    )
    assert logged["accuracy"][0] == 0.0 and value(found, "accuracy") == 0.5


@pytest.mark.parametrize(("objective", "loss_type"), [(Nll(), "nll"), (Dft(), "dft")])
def test_supervised(objective: Nll | Dft, loss_type: str) -> None:
    tokens = Tokens.random(LENGTHS, 6)
    count = int(tokens.lengths.sum())
    stub = trainer(
        args=SimpleNamespace(loss_type=loss_type, average_tokens_across_devices=True, max_length=None),
        compute_loss_func=None, label_smoother=None, get_tp_size=lambda: 1,
    )  # fmt: skip
    inputs = {"input_ids": torch.zeros(10, 1), "attention_mask": torch.ones(10, 1), "labels": torch.zeros(10, 1)}
    expected = trl.SFTTrainer.compute_loss(stub, tokens.model, inputs, num_items_in_batch=torch.tensor(count))
    found = supervised_formula(objective)(tokens.logprobs[tokens.mask], torch.ones(count))
    assert_same(found.total / count, expected, tokens.logprobs)
