"""e^x as torch has it, in every type, with what is infinite or lost."""

from __future__ import annotations

import math

import pytest
import torch

from whet.models.exponential import exp, exp_


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_the_exponential(dtype: torch.dtype) -> None:
    x = torch.linspace(-100.0, 88.0, 40_001, dtype=torch.float64).to(dtype)
    exact, before = x.double().exp(), x.clone()
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-14, torch.bfloat16: 4e-3}[dtype]
    plain = exp(x)
    assert torch.equal(x, before)
    out = exp_(x)
    assert out is x and out.dtype == dtype and torch.equal(out, plain)
    kept = exact > torch.finfo(dtype).tiny  # what is below may be lost
    assert ((out.double() - exact).abs() <= tolerance * exact)[kept].all()


def test_usual_scores_are_closer() -> None:
    x = torch.linspace(-16.0, 16.0, 40_001)
    exact = x.double().exp()
    assert ((exp_(x.clone()).double() - exact).abs() <= 2e-6 * exact).all()


def test_what_is_infinite_or_nothing_stays_so() -> None:
    out = exp_(torch.tensor([-math.inf, 0.0, math.inf, math.nan, 1e5]))
    assert out[:3].tolist() == [0.0, 1.0, math.inf] and out[3].isnan() and out[4] == math.inf
