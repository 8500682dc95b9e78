"""What is logged of a round, worked out by hand."""

import pytest
import torch

from whet.experience.round_file import Round
from whet.objectives.credit import Advantages
from whet.schema.metrics import values
from whet.schema.records import Message, Prompt
from whet.schema.rollouts import Completion, FinishReason, Group, Score
from whet.train.flat import Flat
from whet.train.measuring import Measured
from whet.train.parallel import on_host
from whet.train.round_metrics import explained, round_totals


def test_explained_variance_is_over_the_tokens_that_are_trained_on():
    """Returns 1, 3 and values 0.5, 3.5: errors of variance 0.5, returns of variance 2; the third is masked."""
    advantages = Advantages(
        tokens=torch.zeros(3), rows=torch.tensor([0, 0, 1]), kept=torch.tensor([True, False]),
        returns=torch.tensor([1.0, 3.0, 99.0]),
    )  # fmt: skip
    values = Measured(values=torch.tensor([0.5, 3.5, 0.0]))
    assert explained(values, advantages) == {"val/explained_variance": pytest.approx(1 - 0.5 / 2)}
    assert explained(Measured(), advantages) == {}


def completion(num_tokens: int, finish_reason: FinishReason = "stop") -> Completion:
    return Completion(
        key="k", ids=tuple(range(num_tokens)), text="", logprobs=(0.0,) * num_tokens, finish_reason=finish_reason
    )


def test_what_an_engine_failed_to_give_has_no_length_and_no_reward():
    """Of four completions one failed and one could not be scored; three have lengths 4, 2 and 6."""
    group = Group(
        prompt=Prompt(messages=(Message("user", "?"),)),
        completions=(completion(4), completion(2, "length"), completion(6), completion(0, "error")),
        scores=(
            Score(value=1.0, parts={"a": 3.0}), Score(value=0.0, parts={"a": 1.0}), Score(value=None, error="late"),
            Score(value=None, error="no answer"),
        ),
    )  # fmt: skip
    flat = Flat(
        groups=(), keys=("k",) * 3, group_of=torch.tensor([0, 0, 0]), lengths=torch.tensor([4, 2, 6]),
        rewards=torch.tensor([1.0, 0.0, torch.nan]), sampler_logprobs=torch.zeros(12),
    )  # fmt: skip
    found = values(on_host(round_totals(Round(number=0, groups=(group,)), flat, Measured())))
    assert found["num_completions"] == 4 and found["frac_reward_failed"] == 0.5
    assert found["completions/failed_ratio"] == 0.25 and found["completions/clipped_ratio"] == pytest.approx(1 / 3)
    lengths = [found[f"completions/{name}_length"] for name in ("min", "mean", "max")]
    assert lengths == [2.0, 4.0, 6.0]
    assert found["reward"] == 0.5 and found["rewards/a/mean"] == 2.0
    assert found["rewards/a/std"] == pytest.approx(2**0.5)
