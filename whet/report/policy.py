"""The charts of a policy that learns online: how far it went, how much it still tries, what its value function knows.

`kl`, `entropy`, `clip_ratio/...` and the rest have the names that TRL gives them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from whet.report import alarms, online_alarms
from whet.report.figures import Chart, Lines, Panel, Role, Series
from whet.report.series import finite, has, number, step_series
from whet.runs.reader import Row, StageView

MOVED = 1e-9
"""Nats: below it the policy has not left the one that drew the tokens, and there is nothing to clip."""


def policy_charts(stage: StageView) -> tuple[Chart | None, ...]:
    """None for each that the stage has no numbers for."""
    return _kl(stage), _entropy(stage), _clipping(stage), _values(stage), _seconds(stage)


def _kl(stage: StageView) -> Chart | None:
    panels = []
    if has(stage.steps, "objective/kl"):
        series = step_series(stage.steps, "objective/kl", "objective/kl", "train")
        panels.append(Panel(ylabel="KL, nats\na response", series=(series,)))
    if has(stage.steps, "kl"):
        panels.append(Panel(ylabel="KL, nats\na token", series=(step_series(stage.steps, "kl", "kl", "train"),)))
    if len({y for _, y in finite(stage.steps, "objective/kl_weight")}) > 1:
        series = step_series(stage.steps, "objective/kl_weight", "weight", "second")
        panels.append(Panel(ylabel="KL weight", series=(series,)))
    if not panels:
        return None
    return Chart(
        name="kl",
        title="KL to the reference",
        about=(
            "How far the policy has gone from the model it started from. Healthy: a slow rise that levels off; some "
            "way has to be gone. Red flag: a sudden growth, mostly a policy that has left the language for its reward."
        ),
        figure=Lines(panels=tuple(panels)),
        alarms=alarms.fired([online_alarms.kl_blow_up(stage.steps)]),
    )


def _entropy(stage: StageView) -> Chart | None:
    if not has(stage.steps, "entropy"):
        return None
    panel = Panel(ylabel="nats a token", series=(step_series(stage.steps, "entropy", "entropy", "train"),))
    return Chart(
        name="entropy",
        title="Entropy",
        about=(
            "Mean entropy of the distributions that the tokens were drawn from. Healthy: it falls slowly. Red flag: "
            "it drops towards 0, where all samples of a prompt become one and nothing new is tried."
        ),
        figure=Lines(panels=(panel,)),
        alarms=alarms.fired([online_alarms.entropy_collapse(stage.steps)]),
    )


def _clipping(stage: StageView) -> Chart | None:
    """Nothing where every round has one step: its ratio is 1, and there is nothing to clip."""
    if not any(y > MOVED for _, y in finite(stage.steps, "policy/approxkl_avg")):
        return None
    shares: tuple[tuple[str, str, Role], ...] = (
        ("clip_ratio/low_mean", "low", "rejected"),
        ("clip_ratio/high_mean", "high", "chosen"),
    )
    clipped = [step_series(stage.steps, n, words, role) for n, words, role in shares if has(stage.steps, n)]
    if has(stage.steps, "cispo_clip_ratio"):
        clipped.append(step_series(stage.steps, "cispo_clip_ratio", "high", "chosen"))
    panels = [Panel(ylabel="share clipped", series=tuple(clipped))] if clipped else []
    if has(stage.steps, "policy_ratio"):
        series = step_series(stage.steps, "policy_ratio", "ratio", "train")
        panels.append(Panel(ylabel="mean ratio", series=(series,), levels=((1.0, ""),)))
    series = step_series(stage.steps, "policy/approxkl_avg", "approxkl", "second")
    panels.append(Panel(ylabel="approx. KL", series=(series,)))
    return Chart(
        name="clipping",
        title="Importance ratio and clip",
        about=(
            "How far the steps of a round move the policy from the one that drew its tokens, and the share whose "
            "gradient the clip took away. Healthy: a ratio near 1 and a small share. Red flags: a share that grows "
            "above a fifth, a ratio far from 1: fewer passes or a lower learning rate help."
        ),
        figure=Lines(panels=tuple(panels)),
    )


def _values(stage: StageView) -> Chart | None:
    """PPO's value function."""
    if not has(stage.steps, "loss/value_avg"):
        return None
    panels = [Panel(ylabel="value loss", series=(step_series(stage.steps, "loss/value_avg", "loss", "train"),))]
    if has(stage.steps, "val/explained_variance"):
        series = step_series(stage.steps, "val/explained_variance", "explained", "accuracy")
        panels.append(Panel(ylabel="explained\nvariance", series=(series,), levels=((0.0, "a constant"),)))
    panels.append(Panel(ylabel="mean value", series=(step_series(stage.steps, "val/mean", "mean", "neutral"),)))
    return Chart(
        name="values",
        title="Value function",
        about=(
            "The value function's squared error against the returns, halved; the share of their variance that it "
            "explains when a round begins; what it expects on average. Healthy: the share rises from 0 towards 1, and "
            "the mean follows the reward. Red flag: a share below 0, worse than a constant: advantages are then noise."
        ),
        figure=Lines(panels=tuple(panels)),
    )


def _seconds(stage: StageView) -> Chart | None:
    """Time of each round by what it went to; the rest of its steps is training, log-probs and values included."""
    beside = (stage.config.get("rollout") or {}).get("staleness", 0) > 0
    rounds = list(_rounds(stage, beside))
    if not rounds:
        return None
    x = [step for step, _ in rounds]
    roles: dict[str, Role] = {"generate": "train", "score": "second", "train": "chosen"}
    series = tuple(Series(name, x, [spent[name] for _, spent in rounds], role) for name, role in roles.items())
    sums = {name: sum(spent[name] for _, spent in rounds) for name in roles}
    total = sum(sums.values()) or 1.0
    shares = ", ".join(f"{name} {value / total:.0%}" for name, value in sums.items())
    return Chart(
        name="seconds",
        title="Time and memory",
        about=(
            f"Seconds of each round by what they went to, in all {shares}. "
            + ("Rounds are drawn while others are trained on: the times overlap. " if beside else "")
            + "Training has the passes for log-probs and values in it. Red flags: generation that slows down as "
            "completions grow; memory that climbs without end."
        ),
        figure=Lines(panels=(Panel(ylabel="s / round", series=series, bounds=(0, None)), *memory_panels(stage.steps))),
    )


def memory_panels(steps: Sequence[Row]) -> list[Panel]:
    """Most memory held so far, where it was measured."""
    if not any(row.get("peak_memory_bytes") for row in steps):
        return []
    x = [float(row["step"]) for row in steps]
    memory = [_known(row, "peak_memory_bytes") / 2**30 for row in steps]
    return [Panel(ylabel="peak GiB", series=(Series("peak memory", x, memory, "neutral"),), bounds=(0, None))]


def _rounds(stage: StageView, beside: bool) -> Iterator[tuple[float, dict[str, float]]]:
    """First step and seconds of every round; training is what is left of its steps.

    A round that was drawn `beside` training, or read from disk by a resumed run, cost its steps no generation.
    """
    steps = stage.steps  # made anew whenever it is asked for
    starts = [place for place, row in enumerate(steps) if math.isfinite(number(row, "seconds/generate"))]
    for start, end in pairwise([*starts, len(steps)]):
        first: Row = steps[start]
        generate, score = number(first, "seconds/generate"), _known(first, "seconds/score")
        drawn, spent = generate + score, sum(_known(row, "step_seconds") for row in steps[start:end])
        train = spent - drawn if not beside and _known(first, "step_seconds") >= drawn else spent
        yield float(first["step"]), {"generate": generate, "score": score, "train": train}


def _known(row: Row, name: str) -> float:
    """0 where it was not measured."""
    value = number(row, name)
    return value if math.isfinite(value) else 0.0
