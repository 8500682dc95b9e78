"""The verdict stands in the answer tag and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.data.verdict import SUBJECTS, TIE, Verdict, parse_verdict, read_verdict, write_verdict

verdicts = st.builds(Verdict, st.sampled_from(SUBJECTS), st.sampled_from([1, 2, TIE]))
reasoning = st.text().filter(lambda text: "</think>" not in text)


@given(verdict=verdicts, thoughts=reasoning, others=st.lists(verdicts, max_size=3))
def test_reasoning_never_decides(verdict: Verdict, thoughts: str, others: list[Verdict]) -> None:
    weighed = thoughts + " ".join(f"<answer>{write_verdict(other)}</answer>" for other in others)
    answer = f"<answer>{write_verdict(verdict)}</answer>"
    assert read_verdict(f"<think>{weighed}</think>\n{answer}") == verdict
    assert read_verdict(f"<think>{weighed}</think>\n") is None


@given(verdict=verdicts)
def test_words_and_verdict_are_each_others_inverse(verdict: Verdict) -> None:
    assert parse_verdict(write_verdict(verdict)) == verdict
    assert verdict.swapped.swapped == verdict
    assert (verdict.swapped == verdict) == (verdict.better == TIE)


@given(text=st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    assert read_verdict(text) is None or "<answer>" in text


@pytest.mark.parametrize(
    "answer",
    ["Image 1 is better", " image 1 is better. ", "Image 1\nis better"],
)
def test_form_is_forgiven_where_it_says_nothing(answer: str) -> None:
    assert read_verdict(f"<answer>{answer}</answer>") == Verdict("Image", 1)


@pytest.mark.parametrize(
    "completion",
    [
        "Image 1 is better",  # no tag
        "<think>Image 1 is better</think>",
        "<answer>Image 1</answer>",
        "<answer>Image 3 is better</answer>",
        "<answer>Image 1 is better, or Image 2 is better</answer>",
        "<answer>Image 1 is not better</answer>",
        "<answer>Image 1 is better</answer><answer>Image 2 is better</answer>",  # which one?
        "<answer>Image 1 is better</answer><answer>",
        "<answer>Image 1 is better",
        "<answer>Image 1 and Answer 2 are equally good</answer>",
        "",
    ],
)
def test_no_verdict(completion: str) -> None:
    assert read_verdict(completion) is None
