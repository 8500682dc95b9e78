"""The charts of a stage, with the words that stand beside each: what it is, what is healthy, what is not."""

from __future__ import annotations

from whet.report import alarms
from whet.report.figures import Chart, Lines, Panel, Series
from whet.report.online import Marks, is_online, online_charts, truths
from whet.report.policy import memory_panels
from whet.report.series import column, eval_series, has, number, step_series, watched_numbers
from whet.runs.reader import StageView

LOG_2 = 0.6931
RIGHT_PAIRS = "pairs", "Share of pairs in which the chosen answer has the higher reward."
RIGHT_RESPONSES = "responses", "Share of responses on the right side of the threshold: good ones above, bad ones below."
"""What `rewards/accuracies` counts, in a word and in a sentence."""


def training_charts(stage: StageView) -> list[Chart]:
    """Rewards, loss, watched tasks, optimiser, throughput: those the stage has numbers for."""
    if not stage.steps:
        return []
    marks = _best(stage)
    charts = [
        *online_charts(stage, marks),
        _loss(stage, marks),
        _watched(stage, marks),
        _rewards(stage),
        _accuracies(stage),
        _logps(stage),
        _optimiser(stage),
        None if is_online(stage) else _throughput(stage),
    ]
    return [chart for chart in charts if chart is not None]


def _loss(stage: StageView, marks: Marks) -> Chart:
    series = [step_series(stage.steps, "loss", "training", "train")]
    if has(stage.evaluations, "eval/loss"):
        series.append(eval_series(stage.evaluations, "eval/loss", "held out", "eval"))
    starts_at_log_2 = stage.kind == "dpo" and (stage.config.get("objective") or {}).get("type") == "sigmoid"
    about = (
        "The objective on training batches and on rows kept out of training. Healthy: both fall, then level off "
        "together. Red flag: the held-out line turns up while the training line falls."
    )
    if starts_at_log_2:
        about += " DPO starts at log 2 = 0.693, where the policy equals its reference; near 0 every pair is separated."
    if is_online(stage):
        about = (
            "The surrogate whose gradient improves the policy, KL and values included. Near 0 at the first step of a "
            "round is normal, since advantages cancel: how training goes is in the reward, not here. Red flag: jumps."
        )
    levels = ((LOG_2, "0.693: policy = reference"),) if starts_at_log_2 else ()
    return Chart(
        name="loss",
        title="Loss",
        about=about,
        figure=Lines(panels=(Panel(ylabel="loss", series=tuple(series), levels=levels),), marks=marks),
        alarms=alarms.fired([alarms.not_finite(stage.steps), alarms.overfitting(stage.steps, stage.evaluations)]),
    )


def _watched(stage: StageView, marks: Marks) -> Chart | None:
    """One panel for each watched task's main numbers; breakdowns by group and what stands beside a reward stay out."""
    shown = truths(stage) if is_online(stage) else []
    watched = [name for name in watched_numbers(stage.evaluations) if name not in shown]
    if not watched:
        return None
    panels = tuple(
        Panel(
            ylabel="\n".join(name.removeprefix("watch/").rsplit("/", 1)),
            series=(eval_series(stage.evaluations, name, name, "eval"),),
        )
        for name in watched
    )
    return Chart(
        name="watch",
        title="Held-out tasks during training",
        about=(
            "Real answers measured while training went on. This is what the loss stands for: healthy is a rise that "
            "stays, of a perplexity a fall. Red flag: the task gets worse while the loss still improves."
        ),
        figure=Lines(panels=panels, marks=marks),
        alarms=alarms.fired(alarms.watched_falling(stage.evaluations, name) for name in watched),
    )


def _rewards(stage: StageView) -> Chart | None:
    if not has(stage.steps, "rewards/chosen"):
        return None
    panels = (
        Panel(
            ylabel="implicit reward",
            series=(
                step_series(stage.steps, "rewards/chosen", "chosen", "chosen"),
                step_series(stage.steps, "rewards/rejected", "rejected", "rejected"),
            ),
            levels=((0.0, "reference"),),
        ),
        Panel(ylabel="margin", series=(step_series(stage.steps, "rewards/margins", "chosen - rejected", "margin"),)),
    )
    return Chart(
        name="rewards",
        title="Rewards",
        about=(
            "Implicit reward: beta times how much more likely than under the reference an answer became. Healthy: the "
            "margin grows. Both lines falling together is common, and harmless while it does. Red flag: it shrinks."
        ),
        figure=Lines(panels=panels),
        alarms=alarms.fired([alarms.margin_falling(stage.steps)]),
    )


def _accuracies(stage: StageView) -> Chart | None:
    if not has(stage.steps, "rewards/accuracies"):
        return None
    series = [step_series(stage.steps, "rewards/accuracies", "training", "accuracy")]
    if has(stage.evaluations, "eval/rewards/accuracies"):
        series.append(eval_series(stage.evaluations, "eval/rewards/accuracies", "held out", "eval"))
    unit, about = RIGHT_RESPONSES if stage.kind == "kto" else RIGHT_PAIRS
    panel = Panel(ylabel=f"share of {unit}", series=tuple(series), levels=((0.5, "chance"),), bounds=(-0.02, 1.05))
    return Chart(
        name="accuracies",
        title="Reward accuracy",
        about=(
            f"{about} Healthy: both lines rise above one half. "
            "Red flags: training reaches 1 while held-out stays at chance (learnt by heart); values of only 0 and 1."
        ),
        figure=Lines(panels=(panel,)),
        alarms=alarms.fired([alarms.coarse_accuracy(stage.steps, unit)]),
    )


def _logps(stage: StageView) -> Chart | None:
    if not has(stage.steps, "logps/chosen"):
        return None
    series = (
        step_series(stage.steps, "logps/chosen", "chosen", "chosen"),
        step_series(stage.steps, "logps/rejected", "rejected", "rejected"),
    )
    return Chart(
        name="logps",
        title="Log-probabilities",
        about=(
            "Mean log-probability of whole answers under the policy. Healthy: rejected falls faster than chosen. "
            "Red flag: chosen collapses too, and the model unlearns the answers it was shown as good."
        ),
        figure=Lines(panels=(Panel(ylabel="log-prob of an answer", series=series),)),
        alarms=alarms.fired([alarms.chosen_collapse(stage.steps)]),
    )


def _optimiser(stage: StageView) -> Chart:
    x, y = column(stage.steps, "learning_rate")
    panels = [Panel(ylabel="learning rate", series=(Series("learning rate", x, y, "neutral"),))]
    if has(stage.steps, "grad_norm"):
        panels.append(
            Panel(ylabel="gradient norm", series=(step_series(stage.steps, "grad_norm", "before clipping", "second"),))
        )
    return Chart(
        name="optimiser",
        title="Learning rate and gradient",
        about=(
            "The schedule, and the length of the gradient before clipping. Healthy: the norm settles after the "
            "warm-up. Red flags: jumps above 100, or a norm that grows to the end."
        ),
        figure=Lines(panels=tuple(panels)),
        alarms=alarms.fired([alarms.wild_gradient(stage.steps)]),
    )


def _throughput(stage: StageView) -> Chart | None:
    rows = [row for row in stage.steps if number(row, "step_seconds") > 0 and number(row, "tokens") > 0]
    if not rows:
        return None
    x = [float(row["step"]) for row in rows]
    rate = [number(row, "tokens") / number(row, "step_seconds") for row in rows]
    weight = step_series(rows, "tokens", "", "train").smooth
    panels = [
        Panel(ylabel="tokens / s", series=(Series("speed", x, rate, "train", smooth=weight),), bounds=(0, None)),
        Panel(ylabel="s / step", series=(step_series(rows, "step_seconds", "step time", "second"),), bounds=(0, None)),
    ]
    panels += memory_panels(rows)
    return Chart(
        name="throughput",
        title="Throughput",
        about=(
            "Real, unpadded tokens a second, time of a step, peak memory. Healthy: flat. "
            "Red flag: memory that climbs without end."
        ),
        figure=Lines(panels=tuple(panels)),
    )


def _best(stage: StageView) -> Marks:
    kept = stage.metrics.get("kept_step")
    return ((kept, f"kept: step {kept:g}"),) if kept is not None else ()
