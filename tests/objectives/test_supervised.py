"""Likelihood formulas by hand."""

from __future__ import annotations

import math

import pytest
import torch

from whet.objectives.supervised import dft, nll


def test_nll_is_a_weighted_sum() -> None:
    # -(1 * log 0.5 + 2 * log 0.25) = log 2 + 4 log 2
    logprobs = torch.log(torch.tensor([0.5, 0.25], dtype=torch.float64)).requires_grad_()
    loss = nll(logprobs, torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert loss.total.item() == pytest.approx(5 * math.log(2), abs=1e-12)
    loss.total.backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([-1.0, -2.0], dtype=torch.float64))


def test_dft_weighs_each_token_by_its_probability() -> None:
    # -(1 * 0.5 log 0.5 + 2 * 0.25 log 0.25) = 0.5 log 2 + log 2
    logprobs = torch.log(torch.tensor([0.5, 0.25], dtype=torch.float64)).requires_grad_()
    loss = dft(logprobs, torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert loss.total.item() == pytest.approx(1.5 * math.log(2), abs=1e-12)
    loss.total.backward()
    # The factor p is no variable: d/d log p = -w p, and not -w p (1 + log p).
    torch.testing.assert_close(logprobs.grad, torch.tensor([-0.5, -0.5], dtype=torch.float64))
