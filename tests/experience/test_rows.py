"""Prompts that stages write are the same prompts when they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from whet.config.data import Data
from whet.data.convert import convert
from whet.data.sources import read_records
from whet.experience import reject_files
from whet.experience.accept import Fates
from whet.experience.rows import prompt_row
from whet.experience.sampled import Sampled
from whet.rewards.reward import columns_of
from whet.schema.records import Message, Origin, Prompt

AT = Origin(file="a.jsonl", line=1)
ROWS: list[dict[str, Any]] = [
    {"question": "2 + 3?", "answer": "2 and 3 is 5.\n#### 5"},
    {"prompt": "2 + 3?", "response": "2 and 3 is 5.", "reference": "5", "task": "sum"},
    {"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}], "ground_truth": 5},
    {"prompt": "2 + 3?", "reference": "5", "task": "sum"},
    {"prompt": [{"role": "system", "content": "Add."}, {"role": "user", "content": "2 + 3?"}]},
]


def read(path: Path, *rows: dict[str, Any]) -> Prompt:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (record,), _ = read_records(Data(files=(str(path),)), ("prompt",))
    assert isinstance(record, Prompt)
    return record


def same(prompt: Prompt) -> tuple[object, ...]:
    """All but the place; a reference that was written is found among the columns too, as in any file of prompts."""
    columns = {name: value for name, value in prompt.columns.items() if name != "reference"}
    return prompt.messages, prompt.reference, prompt.answer, prompt.tools, columns, columns_of(prompt)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: next(iter(row)))
def test_a_prompt_comes_back(in_tmp: Path, row: dict[str, Any]) -> None:
    prompt = read(in_tmp / "a.jsonl", row)
    assert same(read(in_tmp / "b.jsonl", prompt_row(prompt))) == same(prompt)
    convert("a.jsonl", Data(files=("a.jsonl",)), "prompt", "c.jsonl")
    assert same(read(in_tmp / "d.jsonl", json.loads((in_tmp / "c.jsonl").read_text()))) == same(prompt)
    group = Sampled(key="k", prompt=prompt, answers=())
    fates = Fates(of=(), is_right=(True,), scored=1, kept=(), wrong=())
    told = read(in_tmp / "e.jsonl", reject_files.prompt_row(group, fates))
    more = {"key": "k", "origin": str(prompt.origin), "num_right": 1, "num_scored": 1}
    assert (told.reference, told.answer) == (prompt.reference, prompt.answer)
    assert columns_of(told) == columns_of(prompt) | more


def test_columns_that_grade_do_not_make_an_answer_of_it(in_tmp: Path) -> None:
    """Beside an `answer`, a score or a label would be read as what people think of it."""
    columns = {"score": 0.5, "label": True}
    prompt = Prompt(messages=(Message("user", "?"),), reference="5", answer="It is 5.", columns=columns, origin=AT)
    assert same(read(in_tmp / "b.jsonl", prompt_row(prompt))) == same(prompt)
