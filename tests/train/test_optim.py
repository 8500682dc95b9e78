"""The schedule, by hand, and what an optimiser is built of."""

from __future__ import annotations

import pytest
import torch

from whet.config.train import Train
from whet.train.optim import build_optimizer, learning_rate
from whet.train.parallel import Parallel


def rates(num: int, **settings: object) -> list[float]:
    train = Train(learning_rate=1.0, **settings)
    return [learning_rate(step, num, train) for step in range(num)]


def test_warmup_rises_linearly_and_is_never_zero() -> None:
    assert rates(10, warmup_steps=3, schedule="constant")[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_cosine_and_linear_fall_to_their_floor_after_the_last_step() -> None:
    assert rates(4, warmup_steps=0, schedule="linear") == pytest.approx([1.0, 0.75, 0.5, 0.25])
    # 0.5 (1 + cos(pi k / 4)), k = 0..3
    assert rates(4, warmup_steps=0, schedule="cosine") == pytest.approx([1.0, 0.8535533906, 0.5, 0.1464466094])
    assert rates(4, warmup_steps=0, schedule="linear", min_lr_ratio=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_ratio_counts_steps_of_the_whole_training() -> None:
    assert rates(100, warmup_ratio=0.05, schedule="constant")[4] == pytest.approx(5 / 6)
    assert rates(100, warmup_ratio=0.05, schedule="constant")[5] == 1.0


# --- optimisers -------------------------------------------------------------------------------------------------------


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 3)
        self.frozen = torch.nn.Linear(4, 4).requires_grad_(False)


@pytest.mark.parametrize("weights", ["fp32", "bf16_master", "bf16_stochastic"])
def test_matrices_decay_vectors_do_not_frozen_weights_are_left_out(weights: str) -> None:
    """Gradients of zero and a rate of 0.1: all that moves a weight is its decay, by a factor 1 - 0.1 * 0.5."""
    torch.manual_seed(0)
    model = Small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, Train(weights=weights, weight_decay=0.5, learning_rate=7.0))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for p in model.parameters():
        if p.requires_grad:
            p.backward(torch.zeros_like(p))
    optimizer.step()
    for name, p in model.named_parameters():
        factor = 0.95 if name in ("words.weight", "layer.weight") else 1.0
        step = 0.0 if weights == "fp32" or name.startswith("frozen") else 2**-7
        torch.testing.assert_close(p.float(), factor * before[name], rtol=step or 1e-6, atol=1e-7)
        assert p.dtype == (torch.float32 if weights == "fp32" or name.startswith("frozen") else torch.bfloat16)


class Two(Small):
    """Of which the layer learns beside the words, three times as fast."""

    def apart(self) -> dict[torch.nn.Parameter, float]:
        return dict.fromkeys(self.layer.parameters(), 3.0)


@pytest.mark.parametrize("weights", ["fp32", "bf16_master"])
def test_what_stands_apart_is_clipped_by_itself(weights: str) -> None:
    """The layer's gradient is a thousand times that of the words, which are clipped as if it were not there."""
    torch.manual_seed(0)
    alone, together = Small(), Two()
    together.load_state_dict(alone.state_dict())
    norms = []
    for model in (alone, together):
        model.layer.requires_grad_(isinstance(model, Two))
        optimizer = build_optimizer(model, Train(weights=weights, weight_decay=0.0, epsilon=1.0))
        assert {group["pace"] for group in optimizer.param_groups} == ({1.0, 3.0} if model is together else {1.0})
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        parameters = [p for p in model.parameters() if p.requires_grad]
        for p in parameters:
            p.backward(torch.full_like(p, 1.0 if p is model.words.weight else 1000.0))
        dtype = torch.float32 if weights == "fp32" else torch.bfloat16
        norms.append(Parallel(torch.device("cpu"), dtype).step(optimizer, parameters, 0.5))
    assert torch.equal(together.words.weight, alone.words.weight)
    # 20 numbers of 1 and 15 of 1000
    assert norms == pytest.approx([20**0.5, (20 + 15e6) ** 0.5], rel=1e-3)


@pytest.mark.parametrize("weights", ["fp32", "bf16_master"])
def test_a_weight_without_a_gradient_moves_as_with_one_of_zero(weights: str) -> None:
    """Several ranks have to add something up for it; one process takes the same step."""
    torch.manual_seed(0)
    without, with_zeros = Small(), Small()
    with_zeros.load_state_dict(without.state_dict())
    for model in (without, with_zeros):
        optimizer = build_optimizer(model, Train(weights=weights, weight_decay=0.5))
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        model.layer.weight.backward(torch.ones_like(model.layer.weight))
        if model is with_zeros:
            model.words.weight.backward(torch.zeros_like(model.words.weight))
            model.layer.bias.backward(torch.zeros_like(model.layer.bias))
        dtype = torch.float32 if weights == "fp32" else torch.bfloat16
        before = model.words.weight.detach().clone()
        Parallel(torch.device("cpu"), dtype).step(optimizer, [p for p in model.parameters() if p.requires_grad], None)
        assert not torch.equal(model.words.weight, before)
    for one, other in zip(without.parameters(), with_zeros.parameters(), strict=True):
        assert torch.equal(one, other)
