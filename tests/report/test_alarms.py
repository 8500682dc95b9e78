"""Each red flag fires on the pattern it names, and stays silent on a healthy run."""

import pytest

from whet.report import alarms


def steps(name, values):
    return [{"step": step, "loss": 1.0, name: value} for step, value in enumerate(values, start=1)]


def curve(first, last, num=30):
    return [first + (last - first) * index / (num - 1) for index in range(num)]


FALLING = [{"step": step, "loss": value} for step, value in enumerate(curve(2.0, 0.5), start=1)]


def held_out(*values):
    return [{"step": 10 * index, "eval/loss": value} for index, value in enumerate(values)]


def watched(*values):
    return [{"step": step, "watch/exact/accuracy": value} for step, value in enumerate(values)]


CASES = [
    (alarms.not_finite([{"step": 3, "loss": None}]), alarms.not_finite(FALLING), "first at step 3"),
    (
        alarms.overfitting(FALLING, held_out(2.0, 1.5, 1.4, 1.7)),
        alarms.overfitting(FALLING, held_out(2.0, 1.5, 1.41, 1.4)),
        "from 1.4 (step 20) to 1.7 (step 30)",
    ),
    (
        alarms.wild_gradient(steps("grad_norm", [1.0, 250.0, 2.0])),
        alarms.wild_gradient(steps("grad_norm", [1.0, 99.0])),
        "largest 250, step 2",
    ),
    (
        alarms.margin_falling(steps("rewards/margins", curve(0, 2) + curve(2, 0.5))),
        alarms.margin_falling(steps("rewards/margins", curve(0, 2))),
        "margin fell",
    ),
    (
        alarms.coarse_accuracy(steps("rewards/accuracies", [0.0, 1.0] * 6), "pairs"),
        alarms.coarse_accuracy(steps("rewards/accuracies", [0.5, 1.0] * 6), "pairs"),
        "0 or 1 at every step",
    ),
    (
        alarms.chosen_collapse(steps("logps/chosen", curve(-40, -120))),
        alarms.chosen_collapse(steps("logps/chosen", curve(-40, -50))),
        "answers away",
    ),
    (
        alarms.watched_falling(watched(0.303, 0.601, 0.202), "watch/exact/accuracy"),
        alarms.watched_falling(watched(0.3, 0.6, 0.58), "watch/exact/accuracy"),
        "exact/accuracy fell from 0.601 (step 1) to 0.202 (step 2)",
    ),
    (alarms.parse_failures({"parse_failure_rate": 0.3}), alarms.parse_failures({"parse_failure_rate": 0.1}), "30%"),
    (alarms.many_ties({"tie_rate": 0.6}), alarms.many_ties({"tie_rate": 0.4}), "60%"),
    (alarms.weak_judge({"agreement": 0.55}), alarms.weak_judge({"agreement": 0.8}), "0.55"),
    (alarms.longer_chosen({"chosen_length_ratio": 2.0}), alarms.longer_chosen({"chosen_length_ratio": 1}), "2.0 times"),
    (alarms.many_cut({"cut_rate": 0.5}), alarms.many_cut({}), "50%"),
    (
        alarms.poor_answers({"replies": 100, "replies_cut": 30, "replies_failed": 0}),
        alarms.poor_answers({"replies": 100, "replies_cut": 3, "replies_failed": 0}),
        "30%",
    ),
]  # fmt: skip


def test_a_loss_below_zero_that_falls_is_no_overfitting():
    falling = [{"step": step, "loss": -value} for step, value in enumerate(curve(0.5, 2.0), start=1)]
    assert alarms.overfitting(falling, held_out(-0.5, -1.0, -1.5)) is None
    assert "rose from -1.5" in alarms.overfitting(falling, held_out(-0.5, -1.5, -1.0))


def test_a_watched_number_of_a_hundred_falls_by_more_than_a_tenth():
    name = "watch/summary/rougeL"
    measured = [[{"step": step, name: y} for step, y in enumerate(ys)] for ys in ([30, 41, 40.5], [30, 41, 29])]
    assert [alarms.watched_falling(one, name) is None for one in measured] == [True, False]


@pytest.mark.parametrize("shares", [(1, 1, 0), (0.5, 1, 0), (0.2, 0.4, 0.6, 0.6, 0.2), (0.5, 0.5, 0.5, 0.5, 0, 0)])
def test_round_shares_are_of_fifty_prompts_at_least(shares):
    """A collapse to nothing is as round as it is common."""
    name = "watch/exact/accuracy"
    assert alarms.watched_falling([{"step": step, name: y} for step, y in enumerate(shares)], name) is not None


@pytest.mark.parametrize(("fired", "silent", "words"), CASES, ids=[case[2] for case in CASES])
def test_fires_and_stays_silent(fired, silent, words):
    assert words in fired
    assert silent is None


def test_a_failed_answer_is_always_said():
    assert "2 of 100 answers failed" in alarms.poor_answers({"replies": 100, "replies_cut": 0, "replies_failed": 2})


def test_what_should_fall_fires_where_it_rises_and_details_of_a_win_rate_never():
    def rows(name, *values):
        return [{"step": 10 * n, name: value} for n, value in enumerate(values)]

    for part in ("loss", "unreadable", "tie", "win", "consistency", "first", "unscored"):
        name = f"watch/match/{part}"
        assert alarms.watched_falling(rows(name, 0.9, 0.5, 0.1), name) is None
    name = "watch/text/perplexity"
    assert alarms.watched_falling(rows(name, 900, 50, 10), name) is None
    assert alarms.watched_falling(rows(name, 10, 10.5, 10.9), name) is None
    assert alarms.watched_falling(rows(name, 10, 9, 30), name) == (
        "text/perplexity rose from 9 (step 10) to 30 (step 20)."
    )
    name = "watch/perplexity of poems/accuracy"
    assert "fell" in alarms.watched_falling(rows(name, 0.901, 0.5, 0.1), name)
