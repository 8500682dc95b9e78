"""The gold check: all real references pass, and a row that does not is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from tests.rewards.made import prompt
from whet.config.data import Data
from whet.config.rewards import Reward
from whet.data.sources import read_records
from whet.rewards.build import build_reward
from whet.rewards.gold import GoldReport, gold_check
from whet.schema.records import Prompt


def check(section: dict[str, Any], *references: str | None) -> GoldReport:
    rows = [prompt(reference, line=line) for line, reference in enumerate(references, start=1)]
    return gold_check(build_reward(TypeAdapter(Reward).validate_python(section)), rows)


@pytest.mark.parametrize(
    "section",
    [{"type": "numeric"}, {"type": "math"}, {"type": "math", "tag": "answer", "after": "</think>"}, {"type": "exact"}],
    ids=lambda section: " ".join(section.values()),
)
def test_every_gold_answer_of_gsm8k(section: dict[str, Any], real_data: Path) -> None:
    file = real_data / "gsm8k_train.jsonl"
    if not file.is_file():
        pytest.skip(f"not found: {file}")
    if section["type"] == "math":
        pytest.importorskip("math_verify", reason="the extra `math` is not installed")
    rows, _ = read_records(Data(files=(str(file),)), ("prompt",))
    prompts = [row for row in rows if isinstance(row, Prompt)]
    report = gold_check(build_reward(TypeAdapter(Reward).validate_python(section)), prompts)
    assert (report.rows, report.failures) == (7473, ())
    assert report.describe() == "gold check: 7,473 references, full marks for all"
    assert report.error() is None


def test_a_row_that_fails_is_named() -> None:
    report = check({"type": "numeric"}, "5", "five", None, "6")
    assert [failure.origin.line for failure in report.failures] == [2, 3]
    assert report.describe() == (
        "gold check: 2 of 4 references do not get full marks: "
        "a.jsonl:2: the reference has no number (found 'five'); a.jsonl:3: the row has no reference"
    )
    assert str(report.error()).startswith("a.jsonl:2: reward: gold check: 2 of 4")


def test_many_are_counted_and_some_are_shown() -> None:
    text = check({"type": "numeric"}, *["many"] * 30).describe()
    assert "30 of 30" in text and "a.jsonl:5: " in text and "a.jsonl:6: " not in text and text.endswith("and 25 more")


def test_math_references_of_every_kind() -> None:
    pytest.importorskip("math_verify", reason="the extra `math` is not installed")
    assert not check(
        {"type": "math"}, "5", "x + 1", r"\frac{1}{2}", "a = 3\n#### 3", r"so \boxed{x}", "12 apples are 12"
    ).failures


def test_a_number_among_words_must_be_right_alone() -> None:
    """Against itself `18 dollars, altogether` would get full marks, and nothing that a model says otherwise."""
    pytest.importorskip("math_verify", reason="the extra `math` is not installed")
    references = ("18 dollars", "18元", "18 dollars, altogether", "5 million", "2 pi", "3的平方", "x + 1", "1/5")
    report = check({"type": "math"}, *references)
    assert [failure.origin.line for failure in report.failures] == [3]
    assert r"a.jsonl:3: 0 for '\\boxed{18}', the number of '18 dollars, altogether'" in report.describe()


def test_a_number_that_is_not_the_whole_answer_is_not_asked_for() -> None:
    pytest.importorskip("math_verify", reason="the extra `math` is not installed")
    whole = ("May 1", "Option 3", "Chapter 5", "Grade 7", "type 2 diabetes", "Team 4 wins", "Yes, 3", "negative 3")
    assert not check({"type": "math"}, *whole, "page 3", "the 3", "about 18", "约18元", "3和5", "5月1日").failures


def test_what_references_say_nothing_of() -> None:
    for section in ({"type": "length", "budget": 5}, {"type": "repetition"}, {"type": "regex", "pattern": "<a>.*"}):
        report = check(section, "5", "6")
        assert (report.checked, report.left_out, report.error()) == ((), ("",), None)
        assert report.describe() == "gold check: references say nothing of this reward"


def test_a_pattern_for_references() -> None:
    assert [failure.origin.line for failure in check({"type": "regex", "pattern": r"\d+"}, "5", "six").failures] == [2]


def test_a_reference_that_holds_tags() -> None:
    assert not check({"type": "tags"}, "5").failures
    assert not check({"type": "tags", "opened": True}, "5").failures
    assert check({"type": "tags"}, "<answer>5</answer>").failures


def test_json_references() -> None:
    pytest.importorskip("jsonschema", reason="the extra `json` is not installed")
    section = {"type": "json_schema", "definition": {"type": "array"}}
    assert [failure.origin.line for failure in check(section, "[1]", "{}").failures] == [2]


def test_the_parts_of_a_composite() -> None:
    parts = [
        {"name": "form", "reward": {"type": "tags"}},
        {"name": "right", "reward": {"type": "numeric", "tag": "answer"}},
        {"name": "short", "reward": {"type": "length", "budget": 5}},
    ]
    report = check({"type": "composite", "parts": parts}, "5", "many")
    assert (report.checked, report.left_out) == (("form", "right"), ("short",))
    assert [(failure.origin.line, failure.part) for failure in report.failures] == [(2, "right")]
    assert "a.jsonl:2 (right): the reference has no number" in report.describe()
