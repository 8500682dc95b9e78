"""The verdict of a comparison as a reward: 1 where the answer tag says what the reference says, else 0.

The reasoning is never read: a truth that is only mentioned there earns nothing.
"""

from __future__ import annotations

from whet.data.verdict import Verdict, parse_verdict, read_verdict
from whet.rewards.reward import RuleReward, Unscored, reference_of
from whet.schema.records import Prompt
from whet.schema.rollouts import Completion


def verdict_rule() -> RuleReward:
    def rule(prompt: Prompt, completion: Completion) -> float:
        return float(read_verdict(completion.text) == truth(prompt))

    def gold(prompt: Prompt) -> str | None:
        return None if prompt.reference is None else f"<answer>{prompt.reference}</answer>"

    return RuleReward(rule=rule, gold=gold)


def truth(prompt: Prompt) -> Verdict:
    """The row's own verdict. Raises Unscored where its reference is none."""
    reference = reference_of(prompt)
    verdict = parse_verdict(reference)
    if verdict is None:
        raise Unscored(f"the reference is no verdict such as `Image 1 is better` (found {reference!r})")
    return verdict
