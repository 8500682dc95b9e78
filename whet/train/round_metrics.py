"""What a round of rollouts is like: its rewards, its lengths, and how far the policy has gone from the reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from whet.experience.round_file import Round
from whet.objectives.advantages import reward_metrics
from whet.objectives.credit import Advantages
from whet.objectives.loss import Total
from whet.objectives.moments import Moments
from whet.objectives.sums import row_sums
from whet.objectives.value import explained_variance
from whet.schema.rollouts import Group
from whet.train.flat import Flat
from whet.train.measuring import Measured


def round_totals(made: Round, flat: Flat, measured: Measured) -> dict[str, Total]:
    """Under TRL's names. `objective/kl` is the mean of log-ratio sums, in nats a response."""
    completions = [completion for group in made.groups for completion in group.completions]
    lengths = torch.tensor([float(completion.num_tokens) for completion in completions])
    cut = [completion.finish_reason == "length" for completion in completions]
    totals = {
        **reward_metrics(flat.rewards, flat.group_of),
        **_parts(made.groups),
        "completions/mean_length": Total(lengths.sum(), float(len(lengths))),
        "completions/clipped_ratio": Total(torch.tensor(float(sum(cut))), float(len(cut))),
    }
    if measured.drift is not None:
        totals["sampling/checked_logp_difference/max"] = Total(measured.drift, 1.0)
    if measured.policy is not None and measured.reference is not None:
        difference = row_sums(measured.policy - measured.reference, flat.rows, len(flat.lengths))
        totals["objective/kl"] = Total(difference.sum(), float(len(difference)))
    return totals


def explained(measured: Measured, advantages: Advantages) -> dict[str, float]:
    """`val/explained_variance`, over the tokens that are trained on; nothing without a value function."""
    if measured.values is None or advantages.returns is None:
        return {}
    kept = advantages.kept[advantages.rows]
    returns = advantages.returns[kept]
    errors = returns - measured.values[kept]
    return {"val/explained_variance": explained_variance(Moments.of(errors), Moments.of(returns))}


def _parts(groups: Sequence[Group]) -> dict[str, Total]:
    """`rewards/NAME/mean` of every named part."""
    found: dict[str, list[float]] = {}
    for group in groups:
        for score in group.scores:
            for name, value in score.parts.items():
                found.setdefault(name, []).append(value)
    return {
        f"rewards/{name}/mean": Total(torch.tensor(numbers).sum(), float(len(numbers)))
        for name, numbers in found.items()
    }
