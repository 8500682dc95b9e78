"""Each red flag of online RL fires on the pattern it names, and stays silent on a healthy run."""

import pytest

from tests.report.test_alarms import curve, steps
from whet.report import online_alarms as alarms


def both(rewards, truths):
    return [
        {"step": 10 * n, "eval/reward": reward, "watch/maths/accuracy": truth}
        for n, (reward, truth) in enumerate(zip(rewards, truths, strict=True))
    ]


def kl_of_the_reward(values, length):
    return [row | {"completions/mean_length": length} for row in steps("objective/kl", values)]


RISING, RISE_AND_FALL = (0.1, 0.4, 0.6, 0.9), (0.201, 0.503, 0.4, 0.297)
JUMP = curve(0.01, 0.05, 20) + curve(0.1, 3.0, 20)
CASES = [
    (
        alarms.over_optimised([], both(RISING, RISE_AND_FALL), "watch/maths/accuracy"),
        alarms.over_optimised([], both(RISING, RISING), "watch/maths/accuracy"),
        "reward rose from 0.4 to 0.9 while maths/accuracy fell from 0.503 (step 10) to 0.297 (step 30)",
    ),
    (
        alarms.over_optimised(steps("reward", curve(0, 1)), both([None] * 4, RISE_AND_FALL), "watch/maths/accuracy"),
        alarms.over_optimised(steps("reward", curve(1, 0)), both([None] * 4, RISE_AND_FALL), "watch/maths/accuracy"),
        "pleases the reward",
    ),
    (
        alarms.no_signal(steps("frac_reward_zero_std", [0.2] * 5 + [1.0, 0.95, 1.0, 1.0, 1.0] + [0.1])),
        alarms.no_signal(steps("frac_reward_zero_std", [1.0, 1.0, 1.0, 1.0, 0.5] * 5)),
        "In 5 rounds (steps 6 to 10) 99% of the prompts",
    ),
    (
        alarms.rewards_failed(steps("frac_reward_failed", [0.0, 0.25, 0.0, 0.125])),
        alarms.rewards_failed(steps("frac_reward_failed", [0.0, None, 0.0])),
        "in 2 rounds (at most 25.0%, step 2)",
    ),
    (alarms.kl_blow_up(steps("kl", JUMP)), alarms.kl_blow_up(steps("kl", curve(0, 0.4))), "step 40"),
    (
        alarms.kl_blow_up(kl_of_the_reward([400.0] * 8, 100.0)),
        alarms.kl_blow_up(kl_of_the_reward([400.0] * 8, 4000.0)),
        "; median 4)",
    ),
    (
        alarms.length_at_limit(steps("completions/clipped_ratio", [0.0] * 5 + [0.6] * 5), 24),
        alarms.length_at_limit(steps("completions/clipped_ratio", [0.6] * 5 + [0.1] * 5), 24),
        "60% of the last 5 rounds' completions were cut at max_new_tokens (24)",
    ),
    (
        alarms.entropy_collapse(steps("entropy", curve(1.0, 0.02))),
        alarms.entropy_collapse(steps("entropy", curve(1.0, 0.3))),
        "Entropy fell from 0.93 to 0.088",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("fired", "silent", "words"), CASES, ids=[case[2][:30] for case in CASES])
def test_fires_and_stays_silent(fired, silent, words):
    assert words in fired
    assert silent is None


def test_too_little_is_known():
    assert alarms.over_optimised([], both(RISING[:2], RISE_AND_FALL[:2]), "watch/maths/accuracy") is None
    assert alarms.kl_blow_up(steps("kl", [9.0] * 4)) is None
    assert alarms.entropy_collapse(steps("entropy", [1.0, 0.0])) is None
    assert alarms.length_at_limit(steps("completions/clipped_ratio", [1.0] * 4), None) is None
