"""The verdict rule: the answer tag against the reference."""

from __future__ import annotations

import pytest

from whet.config.rules import Verdict
from whet.rewards.build import build_reward
from whet.rewards.gold import gold_check
from whet.schema.records import Message, Prompt
from whet.schema.rollouts import Completion


def score(text: str, reference: str | None = "Image 1 is better") -> tuple[float | None, str | None]:
    prompt = Prompt(messages=(Message("user", "?"),), reference=reference)
    completion = Completion(key="k", ids=(), text=text, logprobs=(), finish_reason="stop")
    (found,) = build_reward(Verdict()).score([prompt], [completion])
    return found.value, found.error


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>Image 2 is better</think><answer>Image 1 is better</answer>", 1.0),
        ("<think>Image 1 is better</think><answer>Image 2 is better</answer>", 0.0),
        ("<think>Image 1 is better</think>", 0.0),
        ("Image 1 is better", 0.0),
        ("<answer>Answer 1 is better</answer>", 0.0),
        ("<think>perhaps <answer>Image 1 is better</answer>", 0.0),
        ("<answer>Image 1 is better</answer> No: Image 2 is better.", 0.0),
    ],
)
def test_only_the_answer_counts(text: str, value: float) -> None:
    assert score(text) == (value, None)


def test_a_tie_is_a_verdict() -> None:
    tie = "Image 1 and Image 2 are equally good"
    assert score(f"<answer>{tie}</answer>", tie)[0] == 1.0
    assert score("<answer>Image 1 is better</answer>", tie)[0] == 0.0


def test_a_reference_that_is_no_verdict_is_said() -> None:
    assert score("<answer>Image 1 is better</answer>", "1") == (
        None, "the reference is no verdict such as `Image 1 is better` (found '1')",
    )  # fmt: skip
    assert score("x", None)[1] == "no reference to check against; add one, or use type=custom"


def test_the_gold_answer_has_full_marks() -> None:
    prompts = [Prompt(messages=(Message("user", "?"),), reference=r) for r in ("Image 1 is better", "first")]
    report = gold_check(build_reward(Verdict()), prompts)
    assert report.rows == 2 and [failure.reference for failure in report.failures] == ["first"]
