"""One optimiser step of the real loop against a plain float64 computation, however the batch was cut.

The reference below shares nothing with the package: rows one by one, no padding, all logits, masks by hand.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from whet.config.train import Train
from whet.objectives import pairwise
from whet.train.learners import PairLearner
from whet.train.parallel import Parallel
from whet.train.reference import compute_reference

NUM = 11
"""One step of all rows: micro-batches of 2 and 8 leave a remainder."""
MICRO = (1, 2, 8, 11)


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
        for response in (pair.chosen_ids, pair.rejected_ids):
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
                h = chosen / len(pair.chosen_ids) - rejected / len(pair.rejected_ids)
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


def one_step(micro: int) -> Train:
    return Train(batch_size=NUM, micro_batch_size=micro, max_steps=1, max_grad_norm=None, precision="fp32")


def step(make_loop: Callable[..., Any], **settings: Any) -> tuple[float, list[torch.Tensor], dict[str, Any]]:
    loop = make_loop(**settings)
    loop.fit()
    from whet.runs.files import read_jsonl

    (row,) = [row for row in read_jsonl(loop.metrics.path) if "loss" in row]
    return row["loss"], loop.parallel.gradients[0], row


@pytest.mark.parametrize("lora", [False, True])
def test_sft_step(lora: bool, make_model, make_rows, collate, make_loop) -> None:
    rows, model = make_rows(NUM), make_model(lora=lora)
    double = in_double(model)
    loss = sft_by_hand(double, rows)
    expected = gradient(loss, double)
    for number, (micro, extra) in enumerate([(m, e) for m in MICRO for e in (0, 9)]):
        found, grads, line = step(
            make_loop, model=copy.deepcopy(model), rows=rows, collate=collate(rows, extra=extra), train=one_step(micro),
            folder=str(number),
        )  # fmt: skip
        assert found == pytest.approx(loss.item(), rel=1e-6)
        assert_near(grads, expected, share=1e-5)
        norm = math.sqrt(sum(float(g.square().sum()) for g in expected))
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert line["samples"] == NUM
        assert line["tokens"] == sum(len(row.ids) for row in rows)


@pytest.mark.parametrize("loss_type", list(FORMULAS))
@pytest.mark.parametrize("lora", [False, True])
def test_dpo_step(loss_type: str, lora: bool, make_model, make_pairs, collate, make_loop) -> None:
    pairs, model, start = make_pairs(NUM), make_model(lora=lora), make_model(lora=lora, seed=1)
    # A reference not far away: log-ratios of a few nats, so that no sigmoid is saturated.
    with torch.no_grad():
        for near, own in zip(start.parameters(), model.parameters(), strict=True):
            near.copy_(0.97 * own + 0.03 * near)
    double = in_double(model)
    loss = dpo_by_hand(double, in_double(start), pairs, loss_type)
    expected = gradient(loss, double)
    parallel = Parallel(torch.device("cpu"), torch.float32)
    for number, (micro, extra) in enumerate([(1, 0), (2, 7), (8, 0), (11, 3)]):
        batches = collate(pairs, extra=extra)
        reference = compute_reference(start, NUM, batches, batch_size=micro, parallel=parallel)
        found, grads, line = step(
            make_loop, model=copy.deepcopy(model), rows=pairs, collate=batches, train=one_step(micro),
            folder=str(number), learner=PairLearner(FORMULAS[loss_type], reference),
        )  # fmt: skip
        assert found == pytest.approx(loss.item(), rel=2e-5)
        assert_near(grads, expected, share=5e-5)
        assert line["samples"] == NUM


def test_reference_by_hand(make_model, make_pairs, collate) -> None:
    """Each pair's two log-probs, in the order of the rows, whatever the batch, with dropout off."""
    pairs, model = make_pairs(NUM), make_model(lora=True, dropout=0.5)
    parallel, double = Parallel(torch.device("cpu"), torch.float32), in_double(model)
    with torch.no_grad():
        expected = torch.stack([
            torch.stack([response_sum(double, pair.prompt_ids, ids) for ids in (pair.chosen_ids, pair.rejected_ids)])
            for pair in pairs
        ])  # fmt: skip
    for size in (1, 4, 32):
        found = compute_reference(model, NUM, collate(pairs), batch_size=size, parallel=parallel)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    assert model.training


def test_a_row_without_targets_changes_nothing(make_model, make_rows, collate, make_loop) -> None:
    """Alone in its micro-batch it must neither fail nor weigh in."""
    from dataclasses import replace

    rows, model = make_rows(4), make_model(lora=True)
    silent = replace(rows[0], weights=(0.0,) * len(rows[0].ids))
    train = Train(batch_size=5, micro_batch_size=1, max_steps=1, max_grad_norm=None, precision="fp32")
    settings = {"make_loop": make_loop, "train": train}
    with_it = step(
        **settings, model=copy.deepcopy(model), rows=[*rows, silent], collate=collate([*rows, silent]), folder="a"
    )
    without = step(**settings, model=copy.deepcopy(model), rows=rows, collate=collate(rows), folder="b")
    assert with_it[0] == pytest.approx(without[0], rel=1e-6)
    assert_near(with_it[1], without[1], share=1e-5)
