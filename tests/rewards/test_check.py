"""Checkers: what is right, what is wrong, and what cannot be checked and must not pass for wrong."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from whet.config.rollout import Checker
from whet.errors import ConfigError
from whet.rewards.check import CheckError, build_checker, last_number
from whet.schema.records import Message, Origin, Prompt


def prompt(reference: str | None = None, **columns: object) -> Prompt:
    messages = (Message("system", "Be short."), Message("user", "How much?"))
    return Prompt(messages=messages, reference=reference, columns=columns, origin=Origin(file="a.jsonl", line=7))


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
        ("none", None),
        ("", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


def test_exact_contains_and_numeric() -> None:
    exact = build_checker(Checker(type="exact"))
    assert exact(prompt("Paris"), " Paris\n") == 1.0
    assert exact(prompt("Paris"), "paris") == 0.0
    contains = build_checker(Checker(type="contains"))
    assert contains(prompt("Paris"), "It is Paris.") == 1.0
    assert contains(prompt("Paris"), "It is Rome.") == 0.0
    numeric = build_checker(Checker(type="numeric"))
    assert numeric(prompt("He pays 3 x 400 = 1,200\n#### 1,200"), "So he pays 1200.00 in all") == 1.0
    assert numeric(prompt("1200"), "1201") == 0.0
    assert numeric(prompt("1200"), "I do not know") == 0.0


@pytest.mark.parametrize("kind", ["exact", "contains", "numeric"])
@pytest.mark.parametrize("reference", [None, "  "])
def test_nothing_to_check_against_is_no_wrong_answer(kind: str, reference: str | None) -> None:
    with pytest.raises(CheckError, match=r"a\.jsonl:7: no reference"):
        build_checker(Checker(type=kind))(prompt(reference), "5")  # type: ignore[arg-type]


def test_a_reference_without_number_is_named() -> None:
    with pytest.raises(CheckError, match=r"a\.jsonl:7: the reference has no number"):
        build_checker(Checker(type="numeric"))(prompt("many"), "5")


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Limit:\n"
        "    most: int = 3\n"
        "def every(prompt, completion, **columns):\n"
        "    return (prompt == 'How much?') * 0.5 + (columns == {'reference': 'r', 'task': 't'}) * 0.5\n"
        "def named(prompt, completion, task): return task == 't'\n"
        "def positional(prompt, completion, /, *, task, **_): return float(len(task) <= Limit().most)\n"
        "def broken(prompt, completion, **columns): raise KeyError('task')\n"
        "def large(prompt, completion, **columns): return 2\n"
        "def word(prompt, completion, **columns): return 'yes'\n"
        "def undefined(prompt, completion, **columns): return float('nan')\n"
        "number = 3\n"
    )
    return file


@pytest.mark.parametrize("name", ["every", "named", "positional"])
def test_a_function_in_a_file_gets_the_columns(functions: Path, name: str) -> None:
    check = build_checker(Checker(type="custom", path=f"{functions}:{name}"))
    assert check(prompt("r", task="t", completion="a column of this name is not passed"), "x") == 1.0


def test_a_function_in_a_module(functions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(functions.parent)
    assert build_checker(Checker(type="custom", path="mine:named"))(prompt(task="u"), "x") == 0.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"raised KeyError: 'task'"),
        ("large", r"must return a number in \[0, 1\] \(found 2\)"),
        ("word", r"\(found 'yes'\)"),
        ("undefined", r"\(found nan\)"),
    ],
)
def test_a_failing_function_is_named_with_the_row(functions: Path, name: str, message: str) -> None:
    check = build_checker(Checker(type="custom", path=f"{functions}:{name}"))
    with pytest.raises(CheckError, match=message) as caught:
        check(prompt(), "x")
    assert str(caught.value).startswith("a.jsonl:7: ") and f"mine.py:{name}" in str(caught.value)


def test_what_cannot_be_imported(functions: Path) -> None:
    cases = {
        "no_colon": "write module:function",
        f"{functions}:missing": "it has: broken, every, large, named",
        f"{functions}:number": "no function 'number'",
        "no_such_module:f": "ModuleNotFoundError",
        f"{functions.parent}/absent.py:f": "no such file",
    }
    for path, message in cases.items():
        with pytest.raises(ConfigError, match="checker") as caught:
            build_checker(Checker(type="custom", path=path))
        assert message in str(caught.value)
    functions.write_text("def f(:\n")
    with pytest.raises(ConfigError, match="SyntaxError"):
        build_checker(Checker(type="custom", path=f"{functions}:f"))
