"""The value loss by hand, and how much a value function explains."""

from __future__ import annotations

import math

import pytest
import torch

from tests.objectives.tokens import means, tensor
from whet.objectives.moments import Moments
from whet.objectives.value import ValueTokens, explained_variance, value_loss


def values() -> ValueTokens:
    return ValueTokens(
        values=tensor(1.0, 0.5, 2.0).requires_grad_(), old_values=tensor(0.0, 0.4, 2.1), returns=tensor(1.0, 1.0, 0.0)
    )


def test_clipped_value_loss() -> None:
    # clipped to 0.2, 0.5, 2: squares (0.64, 0.25, 4) against (0, 0.25, 4)
    given = values()
    loss = value_loss(given, clip=0.2)
    assert loss.total.item() == pytest.approx((0.64 + 0.25 + 4.0) / 2)
    assert means(loss)["val/clipfrac_avg"] == pytest.approx(1 / 3)
    assert means(loss)["loss/value_avg"] == pytest.approx(loss.total.item() / 3)
    # a value that has left the range has no gradient; the others have V - R
    torch.testing.assert_close(torch.autograd.grad(loss.total, given.values)[0], tensor(0.0, -0.5, 2.0))


def test_plain_value_loss() -> None:
    given = values()
    loss = value_loss(given, clip=None)
    assert loss.total.item() == pytest.approx((0.0 + 0.25 + 4.0) / 2)
    torch.testing.assert_close(torch.autograd.grad(loss.total, given.values)[0], tensor(0.0, -0.5, 2.0))
    assert "val/clipfrac_avg" not in loss.metrics


def test_gradient_by_finite_differences() -> None:
    given = values()

    def total(v: torch.Tensor) -> torch.Tensor:
        return value_loss(ValueTokens(values=v, old_values=given.old_values, returns=given.returns), clip=0.3).total

    torch.autograd.gradcheck(total, tensor(0.9, 0.55, 2.05).requires_grad_())


def test_explained_variance() -> None:
    returns = tensor(1.0, 2.0, 3.0, 4.0)
    of = Moments.of
    assert explained_variance(of(returns - returns), of(returns)) == 1.0
    assert explained_variance(of(returns - 2.5), of(returns)) == pytest.approx(0.0)
    assert explained_variance(of(returns + returns), of(returns)) == pytest.approx(-3.0)
    # a constant offset is no error of the variance
    assert explained_variance(of(returns - (returns + 7)), of(returns)) == pytest.approx(1.0)
    assert math.isnan(explained_variance(of(tensor(1.0, 2.0)), of(tensor(3.0, 3.0))))
