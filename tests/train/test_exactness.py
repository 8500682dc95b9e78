"""One optimiser step of the real loop against a plain float64 computation, however the batch was cut.

The reference below shares nothing with the package: rows one by one, all logits, masks by hand.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from tests.train.conftest import RecordingParallel
from whet.config.train import Train
from whet.data.batch import GroupBatch, collate_ratings
from whet.data.rendered import RenderedGroup
from whet.models.scoring import TokenScorer
from whet.objectives import absolute, pairwise, transport, unpaired
from whet.objectives.loss import Loss
from whet.train.bind import PairObjective, RatingObjective
from whet.train.learners import PairLearner, RatingLearner
from whet.train.loop import evaluate_loss
from whet.train.reference import Reference, measured

NUM = 11
BUDGETS = (1, 40, 90, 10_000)
"""Tokens per micro-batch: every row alone, a few together, all."""


def logprobs_of(model: torch.nn.Module, ids: tuple[int, ...]) -> torch.Tensor:
    """Log-prob of ids[1:], float64, one row alone."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return torch.log_softmax(logits, dim=-1)[range(len(ids) - 1), list(ids[1:])]


def sft_by_hand(model: torch.nn.Module, rows: list[Any]) -> torch.Tensor:
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for row in rows:
        for logprob, weight in zip(logprobs_of(model, row.ids), row.weights[1:], strict=True):
            total, count = total - weight * logprob, count + weight
    return total / count


def response_sum(model: torch.nn.Module, prompt: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
    return logprobs_of(model, prompt + response)[len(prompt) - 1 :].sum()


def dpo_by_hand(model: torch.nn.Module, reference: torch.nn.Module, pairs: list[Any], loss: str) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for pair in pairs:
        ratios = []
        for response in pair.response_ids:
            with torch.no_grad():
                expected = response_sum(reference, pair.prompt_ids, response)
            ratios.append(response_sum(model, pair.prompt_ids, response) - expected)
        chosen, rejected = ratios
        match loss:
            case "sigmoid":
                total = total + torch.log1p(torch.exp(-0.3 * (chosen - rejected)))
            case "smoothed":
                z = 0.3 * (chosen - rejected)
                total = total + 0.9 * torch.log1p(torch.exp(-z)) + 0.1 * torch.log1p(torch.exp(z))
            case "ipo_sum":
                total = total + (chosen - rejected - 1 / (2 * 0.7)) ** 2
            case "ipo_length":
                h = chosen / len(pair.response_ids[0]) - rejected / len(pair.response_ids[1])
                total = total + (h - 1 / (2 * 0.7)) ** 2
    return total / len(pairs)


FORMULAS = {
    "sigmoid": partial(pairwise.sigmoid, beta=0.3),
    "smoothed": partial(pairwise.sigmoid, beta=0.3, label_smoothing=0.1),
    "ipo_sum": partial(pairwise.ipo_sum, tau=0.7),
    "ipo_length": partial(pairwise.ipo_length, tau=0.7),
}


def in_double(model: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(model).double().eval()


def gradient(loss: torch.Tensor, model: torch.nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


def assert_near(found: list[torch.Tensor], expected: list[torch.Tensor], *, share: float) -> None:
    """Every tensor within `share` of its own norm, so that no small layer can hide behind a large one."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert other.norm() > 0
        assert float((one.double() - other.double()).norm() / other.double().norm()) < share


def one_step(budget: int) -> Train:
    return Train(batch_size=NUM, micro_batch_tokens=budget, max_steps=1, max_grad_norm=None, precision="fp32")


def step(make_loop: Callable[..., Any], **settings: Any) -> tuple[float, list[torch.Tensor], dict[str, Any]]:
    loop = make_loop(**settings)
    loop.fit()
    from whet.runs.files import read_jsonl

    (row,) = [row for row in read_jsonl(loop.metrics.path) if "loss" in row]
    return row["loss"], loop.parallel.gradients[0], row


def reference_by(model: torch.nn.Module) -> Reference:
    """Another model's log-probs, asked for every batch."""
    scorer = TokenScorer(model).eval()

    def score(packed: Any) -> torch.Tensor:
        with torch.no_grad():
            return scorer(packed).logprobs

    return measured(score)


@pytest.mark.parametrize("lora", [False, True])
def test_sft_step(lora: bool, make_model, make_rows, collate, make_loop) -> None:
    rows, model = make_rows(NUM), make_model(lora=lora)
    double = in_double(model)
    loss = sft_by_hand(double, rows)
    expected = gradient(loss, double)
    for budget in BUDGETS:
        found, grads, line = step(
            make_loop, model=copy.deepcopy(model), rows=rows, collate=collate(rows), train=one_step(budget),
            folder=str(budget),
        )  # fmt: skip
        assert found == pytest.approx(loss.item(), rel=1e-6)
        assert_near(grads, expected, share=1e-5)
        norm = math.sqrt(sum(float(g.square().sum()) for g in expected))
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert line["samples"] == NUM
        assert line["tokens"] == sum(len(row.ids) for row in rows)
        assert 0 <= line["mean_token_accuracy"] <= 1 and 0 < line["entropy"] < math.log(300)


@pytest.fixture
def start(make_model) -> Callable[..., torch.nn.Module]:
    """A reference not far away: log-ratios of a few nats, so that no sigmoid is saturated."""

    def near(model: torch.nn.Module, *, lora: bool, share: float = 0.03) -> torch.nn.Module:
        other = make_model(lora=lora, seed=1)
        with torch.no_grad():
            for theirs, own in zip(other.parameters(), model.parameters(), strict=True):
                theirs.copy_((1 - share) * own + share * theirs)
        return other

    return near


@pytest.mark.parametrize("loss_type", list(FORMULAS))
@pytest.mark.parametrize("lora", [False, True])
def test_dpo_step(loss_type: str, lora: bool, make_model, make_pairs, collate, make_loop, start) -> None:
    pairs, model = make_pairs(NUM), make_model(lora=lora)
    reference = start(model, lora=lora)
    double = in_double(model)
    loss = dpo_by_hand(double, in_double(reference), pairs, loss_type)
    expected = gradient(loss, double)
    objective = PairObjective(FORMULAS[loss_type], coupled=False, needs_reference=True)
    for budget in BUDGETS:
        found, grads, line = step(
            make_loop, model=copy.deepcopy(model), rows=pairs, collate=collate(pairs), train=one_step(budget),
            folder=str(budget), learner=PairLearner(objective, reference_by(reference)),
        )  # fmt: skip
        assert found == pytest.approx(loss.item(), rel=2e-5)
        assert_near(grads, expected, share=5e-5)
        assert line["samples"] == NUM


COUPLED = {
    "aot": partial(transport.aot_unpaired, beta=0.3),
    "kto_pair": partial(absolute.kto_pair, beta=0.3),
    "bco_shifted": partial(absolute.bco_shifted, beta=0.3),
}


@pytest.mark.parametrize("name", list(COUPLED))
def test_pairs_that_depend_on_each_other(name: str, make_model, make_pairs, collate, make_loop, start) -> None:
    """However the step is split, loss, metrics and gradient are those of the step taken whole."""
    pairs, model = make_pairs(NUM), make_model(lora=True)
    reference = reference_by(start(model, lora=True, share=0.3))
    objective = PairObjective(COUPLED[name], coupled=True, needs_reference=True)
    whole, *split = [
        step(
            make_loop, model=copy.deepcopy(model), rows=pairs, collate=collate(pairs), train=one_step(budget),
            folder=str(budget), learner=PairLearner(objective, reference),
        )
        for budget in reversed(BUDGETS)
    ]  # fmt: skip
    torn = PairObjective(COUPLED[name], coupled=False, needs_reference=True)
    apart = step(
        make_loop, model=copy.deepcopy(model), rows=pairs, collate=collate(pairs), train=one_step(1), folder="torn",
        learner=PairLearner(torn, reference),
    )  # fmt: skip
    torn_apart = torch.cat([a.flatten() - b.flatten() for a, b in zip(apart[1], whole[1], strict=True)]).norm()
    assert torn_apart > 1e-3 * whole[2]["grad_norm"], "the formula does not look at other pairs"
    for loss, grads, line in split:
        assert loss == pytest.approx(whole[0], rel=1e-5)
        assert_near(grads, whole[1], share=1e-4)
        assert line["rewards/margins"] == pytest.approx(whole[2]["rewards/margins"], rel=1e-4)


@pytest.mark.parametrize("name", list(COUPLED))
def test_held_out_pairs_that_depend_on_each_other(name: str, make_model, make_pairs, collate, start) -> None:
    """They are put into the formula once, not once a batch: 16,000 pairs would take their square."""
    pairs, model, called = make_pairs(NUM), make_model(lora=True).eval(), list[int]()
    reference = reference_by(start(model, lora=True, share=0.3))

    def counting(logprobs: Any) -> Loss:
        called.append(len(logprobs.chosen))
        return COUPLED[name](logprobs)

    learner = PairLearner(PairObjective(counting, coupled=True, needs_reference=True), reference)
    parallel, collated = RecordingParallel(torch.float32), collate(pairs)
    whole = evaluate_loss(TokenScorer(model), learner, [collated(range(NUM))], parallel)
    split = evaluate_loss(TokenScorer(model), learner, [collated([i]) for i in range(NUM)], parallel)
    assert called == [NUM, NUM]
    assert split == pytest.approx(whole, rel=1e-4)


def kto_by_hand(model: torch.nn.Module, reference: torch.nn.Module, rows: list[Any], others: list[Any]) -> torch.Tensor:
    def ratio(prompt: Any, response: Any) -> torch.Tensor:
        with torch.no_grad():
            expected = response_sum(reference, prompt, response)
        return response_sum(model, prompt, response) - expected

    with torch.no_grad():
        mismatched = [
            ratio(r.prompt_ids, o.response_ids[0]) for r, o in zip(rows, others, strict=True)
        ]
    z0 = max(0.0, float(sum(mismatched)) / len(rows))
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        gain = 0.3 * (ratio(row.prompt_ids, row.response_ids[0]) - z0)
        total = total + (1 - torch.sigmoid(gain) if row.values[0] else 1.5 * (1 - torch.sigmoid(-gain)))
    return total / len(rows)


def test_kto_step(make_model, make_pairs, make_loop, start) -> None:
    pairs, model = make_pairs(NUM), make_model(lora=True)
    rows = [
        RenderedGroup(prompt_ids=p.prompt_ids, response_ids=p.response_ids[:1], values=(float(i % 3 == 0),))
        for i, p in enumerate(pairs)
    ]
    others = rows[1:] + rows[:1]
    # The reference is drawn away until the KL term is well above its floor of zero.
    reference, double = start(model, lora=True), in_double(model)
    loss = kto_by_hand(double, in_double(reference), rows, others)
    expected = gradient(loss, double)
    formula = partial(unpaired.kto, beta=0.3, desirable_weight=1.0, undesirable_weight=1.5)

    def ratings(indices: Any) -> Any:
        mine, theirs = [rows[i] for i in indices], [others[i] for i in indices]
        return collate_ratings(mine, theirs, indices, max_length=64, device=torch.device("cpu"))

    frozen = reference_by(reference)
    for budget in BUDGETS:
        found, grads, _ = step(
            make_loop, model=copy.deepcopy(model), rows=rows, collate=ratings, train=one_step(budget),
            folder=str(budget), learner=RatingLearner(RatingObjective(formula, needs_kl=True), frozen, frozen),
        )  # fmt: skip
        assert found == pytest.approx(loss.item(), rel=2e-5)
        assert_near(grads, expected, share=5e-5)


def test_a_row_without_targets_changes_nothing(make_model, make_rows, collate, make_loop) -> None:
    """Alone in its micro-batch it must neither fail nor weigh in."""
    from dataclasses import replace

    rows, model = make_rows(4), make_model(lora=True)
    silent = replace(rows[0], weights=(0.0,) * len(rows[0].ids))
    train = Train(batch_size=5, micro_batch_tokens=1, max_steps=1, max_grad_norm=None, precision="fp32")
    settings = {"make_loop": make_loop, "train": train}
    with_it = step(
        **settings, model=copy.deepcopy(model), rows=[*rows, silent], collate=collate([*rows, silent]), folder="a"
    )
    without = step(**settings, model=copy.deepcopy(model), rows=rows, collate=collate(rows), folder="b")
    assert with_it[0] == pytest.approx(without[0], rel=1e-6)
    assert_near(with_it[1], without[1], share=1e-5)


def test_reference_by_hand(make_model, make_pairs, collate) -> None:
    """Each response's log-prob, in the order of the rows, whatever the batch, with dropout off."""
    pairs, model = make_pairs(NUM), make_model(lora=True, dropout=0.5)
    double = in_double(model)
    with torch.no_grad():
        expected = [response_sum(double, pair.prompt_ids, ids) for pair in pairs for ids in pair.response_ids]
    batch: GroupBatch = collate(pairs)(range(NUM))
    torch.testing.assert_close(
        reference_by(model)(batch).double(), torch.stack(expected), rtol=1e-5, atol=1e-4
    )
