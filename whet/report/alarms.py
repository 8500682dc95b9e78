"""Red flags: patterns in the numbers of a stage that a person should look at, each said in a sentence.

Every function returns the sentence, or None where nothing is wrong or too little is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from whet.report.evaluation import DETAIL, LOWER_IS_BETTER, PERCENT
from whet.report.evidence import apart, average_error, luck, part, watched_turn
from whet.report.series import SMOOTHING, finite, smoothed
from whet.runs.reader import Row

ENOUGH_STEPS = 10
WORSE = 0.1
"""Loss of a watched share, and rise of a watched perplexity in proportion, that count as such."""


def fired(found: Iterable[str | None]) -> tuple[str, ...]:
    """The sentences of those that have something to say."""
    return tuple(sentence for sentence in found if sentence)


def not_finite(steps: Sequence[Row]) -> str | None:
    bad = [row["step"] for row in steps if row["loss"] is None]
    return f"The loss was not a finite number at {len(bad)} steps, first at step {bad[0]}." if bad else None


def overfitting(steps: Sequence[Row], evaluations: Sequence[Row]) -> str | None:
    """Held-out loss rises from its lowest point while training loss goes on falling."""
    held_out, train = finite(evaluations, "eval/loss"), smoothed(steps, "loss")
    if len(held_out) < 3 or not train:
        return None
    best_step, best = min(held_out, key=lambda point: point[1])
    last_step, last = held_out[-1]
    at_best = min(train, key=lambda point: abs(point[0] - best_step))[1]
    if last - best > 0.03 * abs(best) and train[-1][1] < at_best:
        return (
            f"Held-out loss rose from {best:.3g} (step {best_step:g}) to {last:.3g} (step {last_step:g}) while "
            "training loss fell: the model learns its rows by heart. Fewer epochs or a lower learning rate help."
        )
    return None


def wild_gradient(steps: Sequence[Row]) -> str | None:
    high = [(x, y) for x, y in finite(steps, "grad_norm") if y > 100]
    if not high:
        return None
    step, worst = max(high, key=lambda point: point[1])
    return f"The gradient norm passed 100 at {len(high)} steps (largest {worst:.3g}, step {step:g})."


def margin_falling(steps: Sequence[Row]) -> str | None:
    """The moving average falls from its peak, further than the noise of single steps carries it."""
    raw, margins = [y for _, y in finite(steps, "rewards/margins")], smoothed(steps, "rewards/margins")
    if len(margins) < ENOUGH_STEPS:
        return None
    place = max(range(ENOUGH_STEPS - 1, len(margins)), key=lambda number: margins[number][1])
    (peak_step, peak), (_, last) = margins[place], margins[-1]
    errors = [average_error(raw, SMOOTHING, num) for num in (place + 1, len(raw))]
    # Averages of neighbouring steps are alike: five of them are about one look.
    by_chance = luck(len(raw) / 5) * math.hypot(*errors) / math.sqrt(2)
    if peak > 0 and last < 0.7 * peak and peak - last > by_chance:
        return (
            f"The reward margin fell from {peak:.3g} (step {peak_step:g}) to {last:.3g}: "
            "chosen and rejected drift together."
        )
    return None


def coarse_accuracy(steps: Sequence[Row], unit: str) -> str | None:
    values = [y for _, y in finite(steps, "rewards/accuracies")]
    if len(values) >= ENOUGH_STEPS and set(values) <= {0.0, 1.0} and len(set(values)) == 2:
        return f"Accuracy is 0 or 1 at every step: a batch holds too few {unit} to read the curve step by step."
    return None


def chosen_collapse(steps: Sequence[Row]) -> str | None:
    """The first and the last part are compared: a single batch says more of its answers' lengths than of the policy."""
    points = finite(steps, "logps/chosen")
    if len(points) < ENOUGH_STEPS:
        return None
    size = min(max(len(points) // 5, 10), len(points) // 2)
    first, last = part(points[:size]), part(points[-size:])
    if first.mean - last.mean > max(10.0, 0.5 * abs(first.mean)) and apart(first, last):
        return (
            f"The log-probability of chosen answers fell from {first.mean:.4g} to {last.mean:.4g} (means of the first "
            f"and the last {size} steps): training pushes the good answers away too. A lower learning rate or a larger "
            "beta holds them."
        )
    return None


def watched_falling(evaluations: Sequence[Row], name: str) -> str | None:
    """A watched number ends clearly worse than its best while nothing in the loss would show it."""
    metric = name.rpartition("/")[2]
    if metric in DETAIL:
        return None
    lower = metric in LOWER_IS_BETTER
    least = math.log1p(WORSE) if lower else WORSE * (100 if metric in PERCENT else 1)
    turn = watched_turn(finite(evaluations, name), metric, least=least)
    return f"{name.removeprefix('watch/')} {'rose' if lower else 'fell'} {turn.words}." if turn else None


def parse_failures(metrics: Mapping[str, float]) -> str | None:
    share = metrics.get("parse_failure_rate")
    if share is not None and share > 0.2:
        return f"{share:.0%} of the judge's replies could not be read: the model does not judge in the asked form yet."
    return None


def judge_errors(metrics: Mapping[str, float]) -> str | None:
    share = metrics.get("judge_error_rate")
    if share is not None and share > 0.01:
        return f"{share:.1%} of the judgements never came: their reasons stand as error in raw_responses.jsonl."
    return None


def swapped_verdicts(metrics: Mapping[str, float]) -> str | None:
    """A judge whose verdict depends on the order decides by it."""
    share, first = metrics.get("swap_inconsistency_rate"), metrics.get("first_place_share")
    if share is None or share <= 0.4:
        return None
    favour = f"; {first:.0%} of its verdicts are for the answer shown first" if first is not None else ""
    return f"{share:.0%} of the comparisons turn round when the answers change places{favour}: they count as ties."


def little_mass(metrics: Mapping[str, float]) -> str | None:
    mass = metrics.get("score_mass")
    if mass is not None and mass < 0.5:
        return f"Only {mass:.0%} of the probability where a score stood lies on the scale: check judge.low and high."
    return None


def many_ties(metrics: Mapping[str, float]) -> str | None:
    share = metrics.get("tie_rate")
    if share is not None and share > 0.5:
        return f"{share:.0%} of the prompts ended in a tie: the judge hardly tells the candidates apart."
    return None


def weak_judge(metrics: Mapping[str, float]) -> str | None:
    agreement = metrics.get("agreement")
    if agreement is not None and agreement <= 0.55:
        return (
            f"The judge scores a right answer above a wrong one with chance {agreement:.2f}, no better than a coin: "
            "pairs made from its scores teach noise."
        )
    return None


def longer_chosen(metrics: Mapping[str, float]) -> str | None:
    ratio = metrics.get("chosen_length_ratio")
    if ratio is not None and ratio > 1.5:
        return f"Chosen answers are {ratio:.1f} times as long as rejected ones: the judge may reward length."
    return None


def many_cut(metrics: Mapping[str, float]) -> str | None:
    share = metrics.get("cut_rate")
    if share is not None and share > 0.2:
        return (
            f"{share:.0%} of the candidates were cut at max_new_tokens: raise it, or the judge sees unfinished answers."
        )
    return None


def poor_answers(metrics: Mapping[str, float]) -> str | None:
    """An evaluation whose answers were often cut or failed measures its limits, not the model."""
    replies, cut = metrics.get("replies", 0), metrics.get("replies_cut", 0)
    failed = metrics.get("replies_failed", 0)
    if failed:
        return f"{failed:,.0f} of {replies:,.0f} answers failed, and count as wrong: see error in replies.jsonl."
    if replies and cut / replies > 0.1:
        return f"{cut / replies:.0%} of the answers were cut at max_new_tokens: raise it if right answers are longer."
    return None
