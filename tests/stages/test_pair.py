"""The pair stage in a plan: files of earlier stages, joined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from whet.config.load import load_plan
from whet.config.stage import PairStage
from whet.errors import ConfigError, DataError
from whet.runs.files import read_json, read_jsonl
from whet.runs.layout import StagePaths
from whet.schema.artifacts import ModelRef
from whet.stages import pair
from whet.stages.context import Context
from whet.stages.inputs import files_in


def stage(*, chosen: list[str], rejected: list[str]) -> PairStage:
    return PairStage.model_validate({"name": "pair", "chosen": chosen, "rejected": rejected})


def context(folder: Path, config: PairStage) -> Context:
    from whet.config.model import Model

    ref, root = ModelRef(path="m"), folder / "stage"
    root.mkdir(exist_ok=True)
    return Context(
        model=Model(path="m"), start=ref, models={}, paths=StagePaths(root),
        folders={"first": folder / "first", "second": folder / "second"}, stage=config,
    )  # fmt: skip


@pytest.fixture
def answered(tmp_path: Path) -> Path:
    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "yes"}]
    write("second/accepted.jsonl", [{"messages": turns, "key": "1"}, {"messages": turns, "key": "2"}])
    write("first/rejected.jsonl", [{"prompt": "?", "completion": "no", "label": False, "key": "1"}])
    return tmp_path


def test_preferences_of_two_stages(answered: Path) -> None:
    config = stage(chosen=["@second/accepted.jsonl"], rejected=["@first/rejected.jsonl"])
    for _ in range(2):  # what a killed run left is made again
        result = pair.run(config, context(answered, config))
    (row,) = read_jsonl(answered / "stage/preference.jsonl")
    assert (row["prompt"], row["chosen"], row["rejected"], row["key"]) == ("?", "yes", "no", "1")
    assert result.metrics["num_pairs"] == 1 and result.metrics["num_chosen_alone"] == 1
    account = read_json(answered / "stage/pairs.json")
    assert account["pairs"] == 1
    assert account["chosen"]["dropped"]["no wrong answer for it"]["lines"] == {"@second/accepted.jsonl": "2"}


def test_nothing_in_common_is_said(answered: Path) -> None:
    config = stage(chosen=["@second/accepted.jsonl"], rejected=["@second/accepted.jsonl"])
    with pytest.raises(DataError, match="no prompt has a right answer here and a wrong one in"):
        pair.run(config, context(answered, config))


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"chosen": ["@nowhere/a.jsonl"], "rejected": ["b.jsonl"]}, "nowhere"), ({"chosen": ["a.jsonl"]}, "rejected")],
)  # fmt: skip
def test_a_plan_names_both_sides(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_plan({"run": "r", "model": {"path": "m"}, "stages": [{"kind": "pair", **keys}]}, [])


def test_what_it_reads_decides_whether_it_is_made_again(answered: Path) -> None:
    folders = {"first": answered / "first", "second": answered / "second"}
    config = stage(chosen=["@second/accepted.jsonl"], rejected=["@first/rejected.jsonl"])
    assert [place for _, place in files_in(config, folders)] == [
        str(answered / "second/accepted.jsonl"), str(answered / "first/rejected.jsonl"),
    ]  # fmt: skip
