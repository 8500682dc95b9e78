"""What is logged of a round, worked out by hand."""

import pytest
import torch

from whet.objectives.credit import Advantages
from whet.train.measuring import Measured
from whet.train.round_metrics import explained


def test_explained_variance_is_over_the_tokens_that_are_trained_on():
    """Returns 1, 3 and values 0.5, 3.5: errors of variance 0.5, returns of variance 2; the third is masked."""
    advantages = Advantages(
        tokens=torch.zeros(3), rows=torch.tensor([0, 0, 1]), kept=torch.tensor([True, False]),
        returns=torch.tensor([1.0, 3.0, 99.0]),
    )  # fmt: skip
    values = Measured(values=torch.tensor([0.5, 3.5, 0.0]))
    assert explained(values, advantages) == {"val/explained_variance": pytest.approx(1 - 0.5 / 2)}
    assert explained(Measured(), advantages) == {}
