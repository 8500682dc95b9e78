"""Rules that compare with the reference: where they read, what is a number, and what cannot be judged."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rewards.made import completion, prompt, score, value
from whet.config.rules import Contains, Exact, Numeric
from whet.rewards.answer import answer_in, as_answer
from whet.rewards.reward import failures
from whet.rewards.rules import contains, exact, last_number, numeric


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", "42"),
        ("It is 42.", "42"),
        ("first 7, then 1,234", "1234"),
        ("1,234,567.50", "1234567.5"),
        ("3.50", "3.5"),
        ("x = -3", "-3"),
        ("−3", "-3"),
        ("-$5", "-5"),
        ("$1,000.", "1000"),
        ("7-3", "3"),
        ("(4)-2", "2"),
        ("step-9", "9"),
        ("1,2", "2"),
        ("12,34", "34"),
        ("0.25", "0.25"),
        (".5", "0.5"),
        ("- 5 apples", "5"),
        ("#### 18", "18"),
        ("5%", "5"),
        ("٣", None),
        ("答案是-3", "-3"),
        ("温度为−3度", "-3"),
        ("是－3", "-3"),
        ("答案是负3", "-3"),
        ("3元-5元", "5"),
        ("5斤-3斤", "3"),
        ("2辆-4辆", "4"),
        ("5公斤-3公斤", "3"),
        ("A班-5", "5"),
        ("第3题是-3", "-3"),
        ("3度到-3度", "-3"),
        ("f在-3处", "-3"),
        ("шаг-9", "9"),
        ("（4）-2", "2"),
        ("答案是４２", "42"),
        ("答案是３．５", "3.5"),
        ("1，200个", "1200"),
        ("有3，5", "5"),
        ("答案是.5", "0.5"),
        ("none", None),
        ("", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


def test_exact_contains_and_numeric() -> None:
    assert value(exact(Exact()), " Paris\n", "Paris") == 1.0
    assert value(exact(Exact()), "paris", "Paris") == 0.0
    assert value(contains(Contains()), "It is Paris.", "Paris") == 1.0
    assert value(contains(Contains()), "It is Rome.", "Paris") == 0.0
    assert value(numeric(Numeric()), "So he pays 1200.00 in all", "3 x 400 = 1,200\n#### 1,200") == 1.0
    assert value(numeric(Numeric()), "1201", "1200") == 0.0
    assert value(numeric(Numeric()), "I do not know", "1200") == 0.0
    assert value(numeric(Numeric()), "", "1200") == 0.0
    assert value(numeric(Numeric()), "-3", "答案是－３") == 1.0


def test_what_is_weighed_while_reasoning_is_no_answer() -> None:
    text = "<think>Paris? <answer>Paris</answer>? No.</think>\n<answer>Rome</answer>"
    for rule in (exact(Exact(tag="answer")), contains(Contains(after="</think>", tag="answer"))):
        assert value(rule, text, "Rome") == 1.0
        assert value(rule, text, "Paris") == 0.0
    assert value(contains(Contains(after="</think>")), "<think>Paris", "Paris") == 0.0, "no answer yet"
    assert value(numeric(Numeric(tag="answer")), "7", "7") == 0.0, "not where it has to be"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<a>x</a>", "x"), ("<a>x</a><a>y</a>", "y"), ("<a><a>x</a></a>", "x</a>"), ("<a>x", None), ("x</a>", None),
        ("</a><a>", None), ("", None), ("<A>x</A>", None), ("<a></a>", ""),
    ],
)  # fmt: skip
def test_the_last_tag_is_read(text: str, answer: str | None) -> None:
    assert answer_in(text, Exact(tag="a")) == answer


@given(st.text().filter(lambda text: "</" not in text and "<a>" not in text))
def test_an_answer_is_found_where_it_was_put(text: str) -> None:
    for where in (Exact(), Exact(tag="a"), Exact(after="###"), Exact(after="</think>", tag="a")):
        if where.after != "###" or "#" not in text:
            assert (answer_in(as_answer(text, where), where) or "").strip() == text.strip()


@pytest.mark.parametrize("rule", [exact(Exact()), contains(Contains()), numeric(Numeric())])
@pytest.mark.parametrize("reference", [None, "  "])
def test_nothing_to_check_against_is_no_wrong_answer(rule: object, reference: str | None) -> None:
    scored = score(rule, "5", reference)  # type: ignore[arg-type]
    assert scored.value is None and "no reference" in str(scored.error)


def test_a_reference_without_number_is_no_wrong_answer() -> None:
    assert score(numeric(Numeric()), "5", "many").error == "the reference has no number (found 'many')"


def test_a_failed_completion_has_no_score() -> None:
    (scored,) = exact(Exact()).score([prompt("5")], [completion("", error="too long")])
    assert (scored.value, scored.error) == (None, "no answer: too long")
    with pytest.raises(ValueError):
        exact(Exact()).score([prompt("5")], [])


def test_failures_are_counted_by_their_reason() -> None:
    rule = numeric(Numeric())
    scores = rule.score([prompt("many"), prompt("few"), prompt(), prompt("5")], [completion("5")] * 4)
    assert failures(scores) == {
        "the reference has no number": 2, "no reference to check against; add one, or use type=custom": 1
    }  # fmt: skip


def test_endless_digits_take_no_endless_time() -> None:
    begun = time.perf_counter()
    for text in ("1,111" * 200_000, "1" * 1_000_000, "-" * 1_000_000, "1." * 500_000 + "x", "(" * 1_000_000 + "8"):
        value(numeric(Numeric()), text, "8")
    assert time.perf_counter() - begun < 5.0
