"""Rewards as checkers: is this answer right?

    check = build_checker(Checker(type="numeric"))
    check(Prompt(messages=(Message("user", "12 * 100?"),), reference="1,200"), "That makes 1200.")   # 1.0

An answer that cannot be checked raises `CheckError`, which names the row. It is for the caller to count: a failed check
is not a wrong answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from whet.config.rewards import Custom
from whet.config.rollout import Checker
from whet.config.rules import Contains, Exact, Math, Numeric
from whet.errors import DataError
from whet.rewards import rules
from whet.rewards.custom import FunctionReward
from whet.rewards.math import MathReward
from whet.rewards.reward import Reward
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion

Check = Callable[[Prompt, str], float]


class CheckError(DataError):
    """An answer that could not be checked: the row or the function is at fault, not the answer."""


def build_checker(config: Checker) -> Check:
    """The function of a checker section. Raises ConfigError where a custom function cannot be imported."""
    reward = _reward(config)

    def check(prompt: Prompt, text: str) -> float:
        completion = Completion(key="answer", ids=(), text=text, logprobs=(), finish_reason="stop")
        (score,) = reward.score([prompt], [completion])
        if score.value is None:
            raise CheckError(score.error or "no score", file=str(prompt.origin))
        if not 0.0 <= score.value <= 1.0:
            raise CheckError(
                f"{config.path} must return a number in [0, 1]", file=str(prompt.origin), found=f"{score.value:g}"
            )
        return score.value

    return check


def _reward(config: Checker) -> Reward:
    match config.type:
        case "exact":
            return rules.exact(Exact())
        case "contains":
            return rules.contains(Contains())
        case "numeric":
            return rules.numeric(Numeric())
        case "math":
            return MathReward(Math())
        case "custom":
            assert config.path is not None, "the config model requires it"
            return FunctionReward(Custom(path=config.path), field="checker.path")
        case _:
            assert_never(config.type)
