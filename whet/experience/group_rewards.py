"""What the completions of online RL's groups are worth, as far as that is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from whet.rewards.reward import failures
from whet.schema.rollouts import Group, Score

UNSCORED = Score(value=None, error="not scored yet")


def has_reward(group: Group) -> bool:
    """Whether something of it can be trained on."""
    return any(
        score.value is not None and math.isfinite(score.value) and completion.is_trainable
        for completion, score in zip(group.completions, group.scores, strict=True)
    )


def why_unscored(groups: Sequence[Group]) -> str:
    """How many completions have no reward, and why, the commonest reason first; nothing where all have one."""
    scores = [score for group in groups for score in group.scores]
    why = failures(scores)
    if not why:
        return ""
    first = "; ".join(f"{num}: {reason}" for reason, num in why.most_common(3))
    return f"{why.total()} of {len(scores)} completions have no reward ({first})"


def is_scored(group: Group) -> bool:
    return UNSCORED not in group.scores


def unscored(group: Group) -> Group:
    return replace(group, scores=(UNSCORED,) * len(group.completions))


def is_answered(group: Group) -> bool:
    """Whether the engine gave all of its completions: what it failed to give is drawn anew."""
    return all(completion.finish_reason != "error" for completion in group.completions)


def first_complaint(groups: Sequence[Group]) -> str:
    for group in groups:
        for completion, score in zip(group.completions, group.scores, strict=True):
            if reason := completion.error or score.error:
                return reason
    return "empty completions"


def differ(group: Group) -> bool:
    """Whether the group's rewards say which of its completions are better, among those that are trained on."""
    scored = zip(group.completions, group.scores, strict=True)
    return len({score.value for one, score in scored if score.value is not None and one.is_trainable}) > 1
