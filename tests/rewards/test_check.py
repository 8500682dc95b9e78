"""Checkers: rewards in [0, 1], where what cannot be checked must not pass for wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rewards.made import prompt
from whet.config.rollout import Checker
from whet.errors import ConfigError
from whet.rewards.check import CheckError, build_checker


def test_every_type() -> None:
    assert build_checker(Checker())(prompt("Paris"), " Paris\n") == 1.0
    assert build_checker(Checker(type="contains"))(prompt("Paris"), "It is Rome.") == 0.0
    assert build_checker(Checker(type="numeric"))(prompt("#### 1,200"), "So 1200.00 in all") == 1.0


def test_mathematics() -> None:
    pytest.importorskip("math_verify", reason="the extra `math` is not installed")
    check = build_checker(Checker(type="math"))
    assert check(prompt("#### 1,200"), r"\boxed{\frac{2400}{2}}") == 1.0
    assert check(prompt("0.5"), "1/3") == 0.0


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
        "def right(prompt, completion, task): return task == 't'\n"
        "def broken(prompt, completion, **columns): raise KeyError('task')\n"
        "def large(prompt, completion, **columns): return 2\n"
        "def word(prompt, completion, **columns): return 'yes'\n"
        "def undefined(prompt, completion, **columns): return float('nan')\n"
    )
    return file


def test_a_function_gets_the_columns(functions: Path) -> None:
    check = build_checker(Checker(type="custom", path=f"{functions}:right"))
    assert [check(prompt(task=task), "x") for task in "tu"] == [1.0, 0.0]


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
    with pytest.raises(ConfigError, match=r"checker\.path: .* has no function 'missing'.*it has: broken, large"):
        build_checker(Checker(type="custom", path=f"{functions}:missing"))
