"""What a stage reads is found wherever its sections name it, and another content is another input."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from whet.config.base import Section
from whet.config.data import Data
from whet.config.model import Model
from whet.config.rewards import Reward
from whet.config.rollout import Checker
from whet.config.stage import DpoStage, EvaluateStage, PrepareStage, Stage
from whet.schema.artifacts import ModelRef
from whet.stages.inputs import files_in, input_hashes, models_in, sections_in

PART = {"name": "style", "reward": {"type": "custom", "path": "rules/style.py:score"}}
MODELS = [
    ({"type": "model", "path": "rm"}, ["rm"]),
    ({"type": "judge", "model": "base"}, ["base"]),
    ({"type": "judge"}, []),
    ({"type": "numeric"}, []),
    ({"type": "composite", "parts": [PART, {"name": "rm", "reward": {"type": "model", "path": "rm"}}]}, ["rm"]),
]
FILES = [
    ({"type": "custom", "path": "rules/style.py:score"}, [("rules/style.py:score", "rules/style.py")]),
    ({"type": "custom", "path": "mine.rules:score"}, []),
    ({"type": "json_schema", "path": "answer.json"}, [("answer.json", "answer.json")]),
    ({"type": "json_schema", "definition": {"type": "object"}}, []),
    ({"type": "model", "path": "rm", "adapter": "rm/adapter"}, [("rm/adapter", "rm/adapter")]),
    ({"type": "judge", "template": "judge.txt"}, [("judge.txt", "judge.txt")]),
    ({"type": "composite", "parts": [PART]}, [("rules/style.py:score", "rules/style.py")]),
]


class Rewarded(PrepareStage):
    """A stage with a reward."""

    reward: Reward


def rewarded(section: dict[str, Any]) -> Rewarded:
    return Rewarded(reward=TypeAdapter(Reward).validate_python(section))


@pytest.mark.parametrize(("section", "models"), MODELS, ids=lambda value: str(value)[:40])
def test_models_of_a_reward(section: dict[str, Any], models: list[str]) -> None:
    assert list(models_in(rewarded(section))) == models


@pytest.mark.parametrize(("section", "files"), FILES, ids=lambda value: str(value)[:60])
def test_files_of_a_reward(section: dict[str, Any], files: list[tuple[str, str]]) -> None:
    assert list(files_in(rewarded(section).reward, {})) == files


@pytest.mark.parametrize(
    ("stage", "models"),
    [
        (DpoStage(), []),
        (DpoStage.model_validate({"reference": {"model": "base"}}), ["base"]),
        (EvaluateStage(models=("base", "sft")), ["base", "sft"]),
        (
            EvaluateStage.model_validate(
                {"tasks": [{"type": "win_rate", "against": "sft", "judge": {"model": "self"}}]}
            ),
            ["previous", "sft"],
        ),
        (DpoStage.model_validate({"watch": [{"type": "exact"}]}), []),
    ],
    ids=["start", "reference", "evaluated", "win rate", "watched"],
)
def test_models_of_a_stage(stage: Stage, models: list[str]) -> None:
    assert list(models_in(stage)) == models


def test_files_of_every_section() -> None:
    stage = PrepareStage.model_validate(
        {
            "data": {"files": ["a.jsonl", {"path": "b.jsonl"}], "eval_files": ["c.jsonl"], "registry": "info.json"},
            "judge": {"type": "pointwise", "template": "judge.txt"},
            "checker": {"type": "custom", "path": "right.py:check"},
        }
    )  # fmt: skip
    found = [name for name, _ in files_in(stage, {})]
    assert found == ["a.jsonl", "b.jsonl", "c.jsonl", "info.json", "judge.txt", "right.py:check"]


def test_a_section_is_found_at_any_depth() -> None:
    tasks = [{"type": "exact", "checker": {"type": "numeric"}, "data": {"files": ["a.jsonl"]}}]
    found = {type(section) for section in sections_in(DpoStage.model_validate({"watch": tasks}))}
    assert {DpoStage, Data, Checker} <= found
    assert all(issubclass(kind, Section) for kind in found)


def hashes(stage: Stage, models: dict[str, ModelRef]) -> dict[str, str]:
    return input_hashes(stage, Model(path="m"), ModelRef(path="m"), models, {})


def test_another_function_or_reward_model_is_another_input(tmp_path: Path) -> None:
    file, weights = tmp_path / "rules.py", tmp_path / "rm" / "model.safetensors"
    weights.parent.mkdir()
    parts = [
        {"name": "own", "reward": {"type": "custom", "path": f"{file}:score"}},
        {"name": "rm", "reward": {"type": "model", "path": "rm"}},
    ]
    stage, models = rewarded({"type": "composite", "parts": parts}), {"rm": ModelRef(path=str(weights.parent))}
    seen = []
    for code, bytes_ in (("one", b"1"), ("another", b"1"), ("another", b"two")):
        file.write_text(code)
        weights.write_bytes(bytes_)
        seen.append(hashes(stage, models))
    changed = [{name for name in seen[0] if before[name] != after[name]} for before, after in pairwise(seen)]
    assert changed == [{f"{file}:score"}, {"model rm"}]
