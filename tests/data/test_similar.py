"""Texts alike: the same ROUGE-L as rouge-score's, and no text that reaches the threshold missed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from whet.data.similar import Similar, rouge_l
from whet.data.words import words

texts = st.lists(st.sampled_from("abcde"), max_size=12)


class Letters(Tokenizer):  # type: ignore[misc]
    def tokenize(self, text: str) -> list[str]:
        return list(text)


@given(texts, texts)
def test_rouge_l_is_that_of_rouge_score(left: Sequence[str], right: Sequence[str]) -> None:
    scorer = RougeScorer(["rougeL"], tokenizer=Letters())
    theirs = scorer.score("".join(left), "".join(right))["rougeL"].fmeasure
    assert rouge_l(left, right) == pytest.approx(theirs)


@given(st.lists(texts, max_size=8), texts, st.floats(0.05, 1.0))
def test_finds_one_exactly_where_there_is_one(known: list[list[str]], asked: list[str], threshold: float) -> None:
    similar = Similar(threshold)
    for text in known:
        similar.add(text)
    found = similar.find(asked)
    alike = [place for place, text in enumerate(known) if rouge_l(text, asked) >= threshold - 1e-9]
    assert (found is not None) == bool(alike)
    if found is not None:
        assert found[0] in alike and found[1] == pytest.approx(rouge_l(known[found[0]], asked))


def test_thousands_are_asked_without_being_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    import whet.data.similar as module

    aligned = []
    real = module.common
    monkeypatch.setattr(module, "common", lambda left, right: aligned.append(1) or real(left, right))
    similar = Similar(0.7)
    for number in range(3000):
        similar.add(f"please describe topic{number} and thing{number % 50} in words{number % 7} of your own".split())
    for number in range(300):
        assert similar.find(f"how would item{number} be made from part{number} in words of your own".split()) is None
    assert len(aligned) < 300  # of 900,000 pairs


def test_words_of_any_script() -> None:
    assert words("Ein Maß, 3 Äpfel; 三个苹果!") == ["ein", "maß", "3", "äpfel", "三", "个", "苹", "果"]
