"""The charts of online RL: what the reward does and what the truth says, its parts, its signal, the lengths.

Only what a stage logged is drawn. Numbers of a round stand at its first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from whet.report import alarms, online_alarms
from whet.report.figures import Chart, Lines, Panel, Series
from whet.report.policy import policy_charts
from whet.report.series import eval_series, finite, has, names, step_series, watched_numbers
from whet.runs.reader import StageView

Marks = tuple[tuple[float, str], ...]
PARTS_A_CHART = 4
WITHOUT_GROUPS = ("ppo", "reinforce_plus_plus")
"""Objectives that learn from a prompt whose samples all have the same reward."""


def is_online(stage: StageView) -> bool:
    return has(stage.steps, "frac_reward_failed")


def truths(stage: StageView) -> list[str]:
    """Watched accuracies: what the reward is hoped to stand for. Breakdowns by group stay out."""
    return [name for name in watched_numbers(stage.evaluations) if name.endswith("/accuracy")]


def online_charts(stage: StageView, marks: Marks) -> list[Chart]:
    """Those the stage has numbers for; none for a stage of another kind."""
    if not is_online(stage):
        return []
    charts = (_reward(stage, marks), *_parts(stage), _signal(stage), _lengths(stage), *policy_charts(stage))
    return [chart for chart in charts if chart is not None]


def _reward(stage: StageView, marks: Marks) -> Chart | None:
    """The reward, and under it every watched accuracy on the same steps."""
    watched = truths(stage)
    series = list(_both(stage, "reward"))
    if not series and not watched:
        return None
    panels = [Panel(ylabel="reward", series=tuple(series))] if series else []
    panels += [
        Panel(
            ylabel=_label(name.removeprefix("watch/")), series=(eval_series(stage.evaluations, name, name, "margin"),)
        )
        for name in watched
    ]
    about = "Mean reward of the completions trained on, and of one completion to each held-out prompt where there are."
    if watched:
        about += (
            " Below it, on the same steps, the truth that it stands for: the watched accuracy. Healthy: both rise. Red "
            "flag: the reward rises while the truth falls, and the policy has found what the reward overlooks."
        )
    else:
        about += (
            " Healthy: both rise and stay. Whether answers really get better, only a watched task can tell: "
            "a policy may learn to please its reward."
        )
    return Chart(
        name="reward",
        title="Reward and truth" if watched else "Reward",
        about=about,
        figure=Lines(panels=tuple(panels), marks=marks),
        alarms=alarms.fired(
            online_alarms.over_optimised(stage.steps, stage.evaluations, name)
            or alarms.watched_falling(stage.evaluations, name)
            for name in watched
        ),
    )


def _parts(stage: StageView) -> Iterator[Chart]:
    """`rewards/NAME/mean`, a few panels a chart, however many there are."""
    found = names(stage.steps, "rewards/", "/mean")
    starts = range(0, len(found), PARTS_A_CHART)
    for number, start in enumerate(starts, start=1):
        panels = tuple(
            Panel(ylabel=_label(name.removeprefix("rewards/").removesuffix("/mean")), series=tuple(_both(stage, name)))
            for name in found[start : start + PARTS_A_CHART]
        )
        yield Chart(
            name="reward_parts" if number == 1 else f"reward_parts_{number}",
            title="Parts of the reward" + (f" ({number} of {len(starts)})" if len(starts) > 1 else ""),
            about=(
                "Mean of each part before its weight. Healthy: the part that matters rises. Red flag: the sum is "
                "earned by an easy part alone, such as length or form."
            ),
            figure=Lines(panels=panels),
        )


def _signal(stage: StageView) -> Chart | None:
    panels = []
    rollout, objective = stage.config.get("rollout") or {}, stage.config.get("objective") or {}
    compares = stage.kind != "ppo" and objective.get("type") not in WITHOUT_GROUPS
    if rollout.get("group_size") != 1 and has(stage.steps, "reward_std"):
        panels.append(Panel(ylabel="reward std", series=(step_series(stage.steps, "reward_std", "std", "train"),)))
        series = step_series(stage.steps, "frac_reward_zero_std", "all samples equal", "second")
        panels.append(Panel(ylabel="share of\nequal prompts", series=(series,), bounds=(-0.02, 1.05)))
    if any(y > 0 for _, y in finite(stage.steps, "left_out_prompts")):
        series = step_series(stage.steps, "left_out_prompts", "left out", "neutral")
        panels.append(Panel(ylabel="prompts\nreplaced", series=(series,)))
    if any(y > 0 for _, y in finite(stage.steps, "frac_reward_failed")):
        series = step_series(stage.steps, "frac_reward_failed", "without a reward", "rejected")
        panels.append(Panel(ylabel="share without\na reward", series=(series,)))
    if not panels:
        return None
    return Chart(
        name="signal",
        title="Signal",
        about=(
            "How far the rewards of a prompt's samples lie apart, and the share of prompts whose samples all got the "
            "same. Methods that compare samples learn nothing from these. Healthy: a deviation well above 0; the "
            "share grows slowly as prompts are mastered. Red flag: a share near 1."
        ),
        figure=Lines(panels=tuple(panels)),
        alarms=alarms.fired([
            online_alarms.no_signal(stage.steps) if compares else None,
            online_alarms.rewards_failed(stage.steps),
        ]),
    )  # fmt: skip


def _lengths(stage: StageView) -> Chart | None:
    if not has(stage.steps, "completions/mean_length"):
        return None
    limit = (stage.config.get("rollout") or {}).get("max_new_tokens")
    lengths = tuple(_both(stage, "completions/mean_length"))
    longest = max(y for _, y in finite(stage.steps, "completions/mean_length"))
    levels = ((float(limit), f"limit: {limit}"),) if limit is not None and longest > 0.5 * limit else ()
    panels = [Panel(ylabel="tokens", series=lengths, levels=levels)]
    if has(stage.steps, "completions/clipped_ratio"):
        series = step_series(stage.steps, "completions/clipped_ratio", "cut", "second")
        panels.append(Panel(ylabel="share cut at\nthe limit", series=(series,), bounds=(-0.02, 1.05)))
    return Chart(
        name="lengths",
        title="Length of completions",
        about=(
            "Mean tokens of a completion, and the share that reached max_new_tokens and was cut. Healthy: a length "
            "that follows from the task. Red flags: growth without a gain in truth; a length that stays at the limit."
        ),
        figure=Lines(panels=tuple(panels)),
        alarms=alarms.fired([
            online_alarms.length_at_limit(stage.steps, limit), online_alarms.completions_failed(stage.steps),
        ]),
    )


def _both(stage: StageView, name: str) -> Iterator[Series]:
    """A number in training, and held out where it was measured."""
    if has(stage.steps, name):
        yield step_series(stage.steps, name, "training", "train")
    if has(stage.evaluations, f"eval/{name}"):
        yield eval_series(stage.evaluations, f"eval/{name}", "held out", "eval")


def _label(name: str) -> str:
    """A name that somebody chose, short enough to stand beside a panel."""
    lines = wrap(name.replace("/", " "), 16)
    return "\n".join(lines if len(lines) < 3 else [lines[0], lines[1][:15] + "…"])
