"""Which prompts are taken, why others are not, and the proof that no evaluation asks what was taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.config.prompts import GivenPrompts, SelfInstruct
from whet.experience.choose import REASONS, Chooser, digest, fingerprint
from whet.experience.diversity import diversity

BIRD = "Name a bird that cannot fly."


@pytest.mark.parametrize(
    "same", ["name a bird that cannot fly", "  Name a\tBIRD, that cannot fly!  ", "\uff2eame a bird that cannot fly."]
)
def test_case_width_and_signs_make_no_other_prompt(same: str) -> None:
    assert fingerprint(same) == fingerprint(BIRD)


def test_signs_of_a_sum_make_another_prompt() -> None:
    sums = ("How much is 3 + 2?", "How much is 3 - 2?", "How much is 3 * 2?", "How much is 3 / 2?", "How much is 32?")
    assert len({fingerprint(text) for text in sums}) == 5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is (2 + 3) * 4?", "What is 2 + 3 * 4?"), ("2³ = ?", "23 = ?"), ("10¹² = ?", "1012 = ?"),
        ("How much is 5!", "How much is 5"), ("Round 1.5", "Round 1 5"), ("Round .5", "Round 5"),
        ("Simplify 3:2", "Simplify 3 2"), ("How much is 3·2?", "How much is 3 2?"), ("3 – 2 = ?", "3 2 = ?"),
        ("Find f'(2).", "Find f(2)."), ("Round 1,5", "Round 15"),
    ],
)  # fmt: skip
def test_another_sum_is_another_prompt(one: str, other: str) -> None:
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How much is 3+2?", "how much is 3 + 2"), ("2³ = ?", "2^3 ="), ("3 − 2 = ?", "3 - 2 = ?"),
        ("Sort 3,1,2.", "Sort 3, 1, 2"), ("1. Name a bird!", "1 name a bird"), ("（2 + 3）* 4", "(2 + 3) * 4"),
    ],
)  # fmt: skip
def test_the_same_sum_written_otherwise(one: str, other: str) -> None:
    assert fingerprint(one) == fingerprint(other)


def test_other_pictures_make_another_prompt() -> None:
    shown: tuple[tuple[str, ...], ...] = ((), ("a",), ("b",), ("a", "b"), ("b", "a"), ("ab",))
    assert len({fingerprint("[image] What is this?", pictures) for pictures in shown}) == len(shown)
    assert fingerprint("[image] what is THIS", ("a",)) == fingerprint("[image] What is this?", ("a",))


def test_a_question_about_another_picture_is_not_alike() -> None:
    asked, nearly = "[image] What colour is the largest shape?", "[image] What colour is the largest shape here?"
    chooser = Chooser(GivenPrompts(max_similarity=0.7))
    chooser.exclude(asked, ("held out",))
    offered = [
        (asked, ("a",)), (asked, ("b",)), (nearly, ("b",)), (nearly, ("held out",)), (nearly, ()), (asked, ("a", "b")),
        (nearly, ("b", "a")),
    ]  # fmt: skip
    assert [chooser.offer(*one) for one in offered] == [True, True, False, False, True, True, True]
    assert chooser.refused == {"similar": 1, "like_evaluation": 1}
    assert chooser.examples["similar"] == [{"prompt": nearly, "like": asked}]


def test_texts_without_words_are_told_apart() -> None:
    assert fingerprint("?!") != fingerprint("...") and fingerprint("?!") == fingerprint(" ?! ")


def test_an_evaluation_is_never_asked_in_training() -> None:
    chooser = Chooser(GivenPrompts())
    for text in (BIRD, "Spell cat."):
        chooser.exclude(text)
    assert [chooser.offer(text) for text in (BIRD.upper(), "Spell dog.", "Spell CAT!")] == [False, True, False]
    account = chooser.account(["held_out.jsonl"])
    assert account["evaluation"]["num"] == 2 and account["taken"]["num"] == 1 and account["in_both"] == 0
    assert account["taken"]["sha256"] == digest([fingerprint("spell dog")])
    assert chooser.refused == {"evaluation": 2}


def test_a_broken_exclusion_cannot_be_accounted_for() -> None:
    chooser = Chooser(GivenPrompts())
    chooser.offer(BIRD)
    chooser.exclude(BIRD)
    with pytest.raises(AssertionError, match="1 prompts of an evaluation were taken"):
        chooser.account([])


def test_seen_and_twice() -> None:
    chooser = Chooser(GivenPrompts())
    chooser.saw(BIRD)
    assert [chooser.offer(text) for text in (BIRD, "Spell dog.", "Spell dog")] == [False, True, False]
    assert chooser.refused == {"seen": 1, "duplicate": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Add two", "short"),
        ("word " * 151, "long"),
        ("Describe the picture shown here.", "keyword"),
        ("Please go to the shop and buy milk.", "keyword"),
        ("write a program that adds two numbers", "beginning"),
        (", and then add up two numbers", "punctuation"),
        ("Name a bird which cannot fly.", "similar"),
        ("Count the legs of a spider please.", "like_evaluation"),
        ("Say why the sky is blue.", None),
        ("Summarise what cartography is about.", None),
        ("“Explain” this word to a child.", None),
        ("写一首关于春天的短诗", None),
    ],
)
def test_filters_of_self_instruct(text: str, reason: str | None) -> None:
    chooser = Chooser(SelfInstruct())
    chooser.exclude("Count the legs of a spider.")
    chooser.saw(BIRD)
    assert chooser.offer(text) is (reason is None)
    assert list(chooser.refused) == ([reason] if reason else [])
    assert reason is None or reason in REASONS
    if reason == "similar":
        assert chooser.examples["similar"] == [{"prompt": text, "like": BIRD}]


def test_near_evaluation_prompts_are_counted_where_no_filter_removes_them() -> None:
    chooser = Chooser(GivenPrompts())
    chooser.exclude("Invent a name for a dragon: 5 letters, starts with K.")
    assert chooser.offer("Invent a name for a dragon: 5 letters, starts with L.")
    assert chooser.offer("Sort these words by their length.")
    assert chooser.account([])["near"] == {"rouge_l": 0.7, "num": 1}


@given(st.lists(st.text(max_size=20), max_size=20), st.lists(st.text(max_size=20), max_size=5))
def test_whatever_the_texts_everything_is_taken_or_counted(texts: list[str], held_out: list[str]) -> None:
    chooser = Chooser(SelfInstruct(min_words=0))
    for text in held_out:
        chooser.exclude(text)
    taken = sum(chooser.offer(text) for text in texts)
    assert taken + chooser.refused.total() == len(texts) and taken == len(chooser.taken)
    assert chooser.account([])["in_both"] == 0


def test_diversity() -> None:
    same = diversity(["name a bird", "name a bird"])
    assert same == {"distinct_1": 0.5, "distinct_2": 0.5, "self_rouge_l": 1.0}
    other = diversity(["name a bird", "spell one word"])
    assert other == {"distinct_1": 1.0, "distinct_2": 1.0, "self_rouge_l": 0.0}
    assert diversity(["", ""]) == {"self_rouge_l": 0.0} and diversity([]) == {}
