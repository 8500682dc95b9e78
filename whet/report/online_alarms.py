"""Red flags of online RL, each a sentence; None where nothing is wrong or too little is known.

Numbers of a round stand at its first step, so these count rounds, not steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median

from whet.report.evidence import watched_turn
from whet.report.series import finite, smoothed
from whet.runs.reader import Row

A_WHILE = 5
"""Rounds that are a pattern and no accident."""
NO_SIGNAL = 0.9
"""Share of prompts with equal rewards from which hardly anything is learnt."""
AT_LIMIT = 0.3
FAR = 1.0
"""Nats a token of KL that are too many, however they came."""
SUDDEN = (0.1, 5.0)
"""Nats a token, and times the median, that are too many when both are passed."""
COLLAPSED = 0.2
"""Share of the first entropy."""
NOTICED = 0.05
"""Loss of truth, and rise of the reward as a share of its range, that count as such."""


def over_optimised(steps: Sequence[Row], evaluations: Sequence[Row], truth: str) -> str | None:
    """The reward rises while a watched accuracy falls from its best (Gao et al., 2210.10760).

    The held-out reward is compared where there is one, else that of the completions trained on.
    """
    held_out = finite(evaluations, "eval/reward")
    rewards = held_out if len(held_out) >= 3 else smoothed(steps, "reward")
    turn = watched_turn(finite(evaluations, truth), truth.rpartition("/")[2], least=NOTICED)
    if turn is None or len(rewards) < 3:
        return None
    then, now = (min(rewards, key=lambda point: abs(point[0] - step))[1] for step, _ in (turn.best, turn.last))
    values = [value for _, value in rewards]
    if now <= then + NOTICED * (max(values) - min(values)):
        return None
    return (
        f"The reward rose from {then:.3g} to {now:.3g} while {truth.removeprefix('watch/')} fell {turn.words}: the "
        "policy pleases the reward and not the truth behind it. Stop earlier, raise kl_weight, or mend the reward."
    )


def no_signal(steps: Sequence[Row]) -> str | None:
    """The longest stretch of rounds in which nearly every prompt's samples have the same reward."""
    longest: list[tuple[float, float]] = []
    current: list[tuple[float, float]] = []
    for point in finite(steps, "frac_reward_zero_std"):
        current = [*current, point] if point[1] >= NO_SIGNAL else []
        longest = max(longest, current, key=len)
    if len(longest) < A_WHILE:
        return None
    (first, _), (last, _) = longest[0], longest[-1]
    return (
        f"In {len(longest)} rounds (steps {first:g} to {last:g}) {mean(y for _, y in longest):.0%} of the prompts had "
        "the same reward for all samples (reward std 0), and taught nothing: they are too easy or too hard. Other "
        "prompts, more samples, or a finer reward help."
    )


def rewards_failed(steps: Sequence[Row]) -> str | None:
    failed = [(x, y) for x, y in finite(steps, "frac_reward_failed") if y > 0]
    if not failed:
        return None
    step, worst = max(failed, key=lambda point: point[1])
    return (
        f"Completions had no reward in {len(failed)} rounds (at most {worst:.1%}, step {step:g}); they were left out "
        "of training: see error in completions.jsonl."
    )


def completions_failed(steps: Sequence[Row]) -> str | None:
    failed = [(x, y) for x, y in finite(steps, "completions/failed_ratio") if y > 0]
    if not failed:
        return None
    step, worst = max(failed, key=lambda point: point[1])
    return (
        f"The engine failed to give completions in {len(failed)} rounds (at most {worst:.1%}, step {step:g}): see "
        "error in completions.jsonl."
    )


def kl_blow_up(steps: Sequence[Row]) -> str | None:
    """By nats a token, so that long completions are no alarm."""
    points = _kl(steps)
    if len(points) < A_WHILE:
        return None
    step, worst = max(points, key=lambda point: point[1])
    usual = median(y for _, y in points)
    least, times = SUDDEN
    if worst <= FAR and (worst <= least or worst <= times * usual):
        return None
    return (
        f"The KL to the reference reached {worst:.2g} nats a token (step {step:g}; median {usual:.2g}): the policy has "
        "run away from its reference. A larger kl_weight or a lower learning rate holds it."
    )


def _kl(steps: Sequence[Row]) -> list[tuple[float, float]]:
    """The estimate in the loss, else the one of the reward over the mean length."""
    if in_loss := smoothed(steps, "kl"):
        return in_loss
    lengths = dict(finite(steps, "completions/mean_length"))
    return [(x, y / lengths[x]) for x, y in smoothed(steps, "objective/kl") if lengths.get(x)]


def length_at_limit(steps: Sequence[Row], limit: int | None) -> str | None:
    """Many of the last rounds' completions were cut."""
    shares = [y for _, y in finite(steps, "completions/clipped_ratio")][-A_WHILE:]
    if len(shares) < A_WHILE or mean(shares) < AT_LIMIT:
        return None
    where = f" ({limit})" if limit is not None else ""
    return (
        f"{mean(shares):.0%} of the last {A_WHILE} rounds' completions were cut at max_new_tokens{where}: raise it "
        "where right answers are longer; else the policy has stopped ending its answers, and a penalty on length helps."
    )


def entropy_collapse(steps: Sequence[Row]) -> str | None:
    points = finite(steps, "entropy")
    if len(points) < 2 * A_WHILE:
        return None
    first, last = (mean(y for _, y in part) for part in (points[:A_WHILE], points[-A_WHILE:]))
    if last >= COLLAPSED * first:
        return None
    return (
        f"Entropy fell from {first:.2g} to {last:.2g} nats a token: samples of a prompt become alike, and nothing new "
        "is tried. A lower learning rate, a larger clip_high or an entropy_weight keeps it up."
    )
