"""What a round of rollouts is like: its rewards, its lengths, and how far the policy has gone from the reference."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import stdev

import torch

from whet.experience.round_file import Round
from whet.objectives.advantages import reward_metrics
from whet.objectives.credit import Advantages
from whet.objectives.loss import Total
from whet.objectives.moments import Moments
from whet.objectives.sums import row_sums
from whet.objectives.value import explained_variance
from whet.schema.rollouts import Completion, Group
from whet.train.flat import Flat
from whet.train.measuring import Measured


def round_totals(made: Round, flat: Flat, measured: Measured) -> dict[str, Total]:
    """Under TRL's names. `objective/kl` is the mean of log-ratio sums, in nats a response.

    What an engine failed to give has no length, and no reward.
    """
    completions = [completion for group in made.groups for completion in group.completions]
    scores = [score for group in made.groups for score in group.scores]
    answered = [completion for completion in completions if completion.finish_reason != "error"]
    totals = {
        **reward_metrics(flat.rewards, flat.group_of),
        "num_completions": _mean([float(len(completions))]),
        "frac_reward_failed": _mean([float(score.value is None) for score in scores]),
        **_parts(made.groups),
        **_lengths(answered),
        "completions/failed_ratio": _mean([float(completion.finish_reason == "error") for completion in completions]),
        "completions/clipped_ratio": _mean([float(completion.finish_reason == "length") for completion in answered]),
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
    """`rewards/NAME/mean` and `.../std` over all completions, of every named part."""
    found: dict[str, list[float]] = {}
    for group in groups:
        for score in group.scores:
            for name, value in score.parts.items():
                found.setdefault(name, []).append(value)
    means = {f"rewards/{name}/mean": _mean(numbers) for name, numbers in found.items()}
    deviations = {f"rewards/{name}/std": _mean([_deviation(numbers)]) for name, numbers in found.items()}
    return {**means, **deviations}


def _lengths(completions: Sequence[Completion]) -> dict[str, Total]:
    lengths = [float(completion.num_tokens) for completion in completions]
    if not lengths:
        return {}
    return {
        "completions/mean_length": _mean(lengths),
        "completions/min_length": _mean([min(lengths)]),
        "completions/max_length": _mean([max(lengths)]),
    }


def _deviation(numbers: Sequence[float]) -> float:
    """With Bessel's correction; 0 of one number."""
    return stdev(numbers) if len(numbers) > 1 else 0.0


def _mean(numbers: Sequence[float]) -> Total:
    """Every rank knows the whole round, so these are never added over ranks."""
    return Total(torch.tensor(numbers).sum(), float(len(numbers)))
