"""The verdict stands in the answer tag and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.data.verdict import SUBJECTS, TIE, Verdict, parse_verdict, read_verdict, write_verdict

verdicts = st.builds(Verdict, st.sampled_from(SUBJECTS), st.sampled_from([1, 2, TIE]))
reasoning = st.text().filter(lambda text: "</think>" not in text)
blanks = st.text(" \n\t", max_size=4)


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


@given(verdict=verdicts, thoughts=reasoning, around=st.tuples(blanks, blanks))
def test_white_space_around_the_answer_says_nothing(verdict: Verdict, thoughts: str, around: tuple[str, str]) -> None:
    answer = f"{around[0]}<answer>{write_verdict(verdict)}</answer>{around[1]}"
    assert read_verdict(answer) == read_verdict(f"<think>{thoughts}</think>{answer}") == verdict


@given(verdict=verdicts, thoughts=reasoning)
def test_reasoning_that_does_not_end_has_no_verdict(verdict: Verdict, thoughts: str) -> None:
    assert read_verdict(f"<think>{thoughts}<answer>{write_verdict(verdict)}</answer>") is None


@given(verdict=verdicts, words=st.text(min_size=1).filter(lambda text: text.strip() and "</think>" not in text))
def test_nothing_else_may_stand_beside_the_answer(verdict: Verdict, words: str) -> None:
    answer = f"<answer>{write_verdict(verdict)}</answer>"
    for behind in (f"{words}{answer}", f"{answer}{words}"):
        assert read_verdict(behind) is None
        assert read_verdict(f"<think>...</think>{behind}") is None


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
        "<think>perhaps <answer>Image 1 is better</answer>",  # still thinking
        "<think><answer>Image 1 is better</answer>",
        "<answer>Image 1 is better</answer><think>",
        "<answer>Image 1 is better</answer> No: Image 2 is better.",  # takes it back
        "<think>...</think><answer>Image 1 is better</answer>.",
        "<think>...</think> It is not so that <answer>Image 1 is better</answer>",
        "Not: <answer>Image 1 is better</answer>",
        "<answer><answer>Image 1 is better</answer></answer>",
        "",
    ],
)
def test_no_verdict(completion: str) -> None:
    assert read_verdict(completion) is None
