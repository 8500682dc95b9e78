"""Rules about the shape of a completion alone: its length, and how often it says the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from whet.config.rules import Length, Overlong, Repetition
from whet.data.words import words
from whet.errors import ConfigError
from whet.rewards.reward import RuleReward, Unscored
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion

Unit = Literal["tokens", "characters", "words"]

OVERLONG_SHARE = 5
"""The punishment of overlong answers grows over a fifth of the limit (DAPO: 4096 of 20480)."""


def length(config: Length) -> RuleReward:
    target = config.target or config.budget
    assert target is not None, "the config model requires one of both"
    slack = config.slack or target

    def rule(prompt: Prompt, completion: Completion) -> float:
        off = _num_pieces(completion, config.unit) - target
        return max(0.0, 1.0 - (abs(off) if config.target else max(0, off)) / slack)

    return RuleReward(rule=rule)


def overlong(config: Overlong, *, max_new_tokens: int | None) -> RuleReward:
    """Raises ConfigError where no limit is known, or the punishment begins before the first token."""
    limit = config.max_tokens or max_new_tokens
    if limit is None:
        raise ConfigError("is required here", field="reward.max_tokens", fix="set it to the longest answer in tokens")
    cache = config.cache or max(1, limit // OVERLONG_SHARE)
    if cache > limit:
        raise ConfigError(
            f"is more than the longest answer, {limit} tokens", field="reward.cache", found=str(cache),
            fix=f"set it to {max(1, limit // OVERLONG_SHARE)} or so",
        )  # fmt: skip

    def rule(prompt: Prompt, completion: Completion) -> float:
        return soft_overlong(completion.num_tokens, limit, cache)

    return RuleReward(rule=rule)


def soft_overlong(num_tokens: int, limit: int, cache: int) -> float:
    """DAPO's punishment (2503.14476, eq. 13): 0 up to limit - cache, then linear down to -1 at the limit and above."""
    over = num_tokens - (limit - cache)
    return -min(1.0, max(0, over) / cache)


def repetition(config: Repetition) -> RuleReward:
    def rule(prompt: Prompt, completion: Completion) -> float:
        return -repeated(pieces(completion, config.unit), config.ngram)

    return RuleReward(rule=rule)


def repeated(units: Sequence[int | str], ngram: int) -> float:
    """Share of the n-grams that have been there before; 0 for a text shorter than one."""
    grams = [tuple(units[start : start + ngram]) for start in range(len(units) - ngram + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def _num_pieces(completion: Completion, unit: Unit) -> int:
    """Raises Unscored where a server has not even counted its tokens."""
    if unit != "tokens":
        return len(pieces(completion, unit))
    if completion.text and not completion.num_tokens:
        raise Unscored("the server does not count its tokens; count words or characters")
    return completion.num_tokens


def pieces(completion: Completion, unit: Unit) -> Sequence[int | str]:
    """The completion, cut into what is counted; tokens include the one that ends the turn.

    Raises Unscored where the tokens are not known.
    """
    match unit:
        case "tokens":
            if not completion.ids and completion.text:
                raise Unscored("the server does not say which tokens it wrote; count words or characters")
            return completion.ids
        case "characters":
            return completion.text
        case "words":
            return words(completion.text)
