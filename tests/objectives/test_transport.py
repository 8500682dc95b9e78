"""AOT on three pairs whose order by policy differs from their order by reference."""

from __future__ import annotations

import math

import pytest
import torch

from tests.objectives.pairs import at_reference, softplus
from whet.objectives.pairwise import PairLogprobs
from whet.objectives.transport import aot, aot_unpaired


def three() -> PairLogprobs:
    """Margins of the policy 2, -1, 0.5; of the reference 0, 1, -2. r_w = (1, 0, 3), r_l = (-1, 2, 0.5)."""

    def tensor(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return PairLogprobs(
        chosen=tensor(-10.0, -6.0, -4.5).requires_grad_(),
        rejected=tensor(-12.0, -5.0, -5.0).requires_grad_(),
        reference_chosen=tensor(-11.0, -6.0, -7.5),
        reference_rejected=tensor(-11.0, -7.0, -5.5),
        chosen_length=tensor(1.0, 2.0, 3.0),
        rejected_length=tensor(1.0, 2.0, 3.0),
    )


def test_paired_compares_sorted_margins() -> None:
    # policy -1, 0.5, 2 against reference -2, 0, 1: differences 1, 0.5, 1
    loss = aot(three(), beta=0.5)
    assert loss.total.item() == pytest.approx(2 * softplus(-0.5) + softplus(-0.25), abs=1e-12)
    smoothed = aot(three(), beta=0.5, label_smoothing=0.1).total.item()
    expected = 0.9 * (2 * softplus(-0.5) + softplus(-0.25)) + 0.1 * (2 * softplus(0.5) + softplus(0.25))
    assert smoothed == pytest.approx(expected, abs=1e-12)


def test_unpaired_compares_sorted_log_ratios() -> None:
    # chosen 0, 1, 3 against rejected -1, 0.5, 2: differences 1, 0.5, 1
    loss = aot_unpaired(three(), beta=0.5)
    assert loss.total.item() == pytest.approx(2 * softplus(-0.5) + softplus(-0.25), abs=1e-12)


def test_the_gradient_goes_to_the_pair_that_holds_the_quantile() -> None:
    batch = three()
    aot(batch, beta=0.5).total.backward()
    # the second pair is the lowest quantile (difference 1), the third the middle (0.5), the first the highest (1)
    weights = [0.5 / (1 + math.exp(0.5 * d)) for d in (1.0, 1.0, 0.5)]
    assert batch.chosen.grad is not None and batch.chosen.grad.tolist() == pytest.approx([-w for w in weights])
    assert batch.rejected.grad is not None and batch.rejected.grad.tolist() == pytest.approx(weights)


def test_the_order_of_pairs_does_not_matter() -> None:
    batch = three()
    order = torch.tensor([2, 0, 1])
    turned = PairLogprobs(**{name: getattr(batch, name)[order] for name in batch.__dataclass_fields__})
    for formula in (aot, aot_unpaired):
        found, other = formula(batch, beta=0.5).total, formula(turned, beta=0.5).total
        assert found.item() == pytest.approx(other.item(), abs=1e-12)


def test_log_two_at_the_reference() -> None:
    for formula in (aot, aot_unpaired):
        assert formula(at_reference(), beta=0.5).total.item() == pytest.approx(2 * math.log(2), abs=1e-12)
