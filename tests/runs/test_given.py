"""A model as a person names it: one of the plan's, a checkpoint, an adapter's directory, a stage's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest

from whet.errors import ModelError
from whet.runs.given import ref_of, resolve
from whet.runs.layout import StagePaths
from whet.runs.ledger import Status, write_status
from whet.schema.artifacts import ModelRef


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base/of/it"}))
    return folder


def stage(folder: Path, status: Literal["running", "done"], model: Mapping[str, str | None] | None) -> str:
    paths = StagePaths(folder)
    folder.mkdir()
    write_status(paths, Status(name="dpo", kind="dpo", status=status, config={}, inputs={}, started="", model=model))
    return str(folder)


def test_a_model_of_the_plan_goes_before_a_directory(adapter: Path) -> None:
    own = ModelRef(path="somewhere")
    assert ref_of(str(adapter), {str(adapter): own}) == own
    assert ref_of(str(adapter), {}) == ModelRef(path="base/of/it", adapter=str(adapter))


def test_a_checkpoint_and_a_hub_id_are_themselves(tmp_path: Path, adapter: Path) -> None:
    assert resolve(str(tmp_path)) == ModelRef(path=str(tmp_path))
    assert resolve("Qwen/Qwen3-0.6B") == ModelRef(path="Qwen/Qwen3-0.6B")
    assert resolve(str(tmp_path), str(adapter)) == ModelRef(path=str(tmp_path), adapter=str(adapter))


def test_a_finished_stage_is_the_model_it_made_wherever_it_lies_now(tmp_path: Path) -> None:
    with_adapter = stage(tmp_path / "a", "done", {"path": "base", "adapter": "where/it/was/adapter"})
    assert resolve(with_adapter) == ModelRef(path="base", adapter=str(tmp_path / "a" / "adapter"))
    whole = stage(tmp_path / "b", "done", {"path": "where/it/was/model", "adapter": None})
    assert resolve(whole) == ModelRef(path=str(tmp_path / "b" / "model"))


@pytest.mark.parametrize("status", ["running", "done"])
def test_a_stage_without_a_model(tmp_path: Path, status: Literal["running", "done"]) -> None:
    made = {"path": "base", "adapter": None} if status == "running" else None
    with pytest.raises(ModelError, match=r"^model: this stage has made no model"):
        resolve(stage(tmp_path / "a", status, made))


@pytest.mark.parametrize("text", ["{}", "{", "[]", '{"base_model_name_or_path": 3}'])
def test_an_adapter_that_does_not_say_what_it_was_trained_on(adapter: Path, text: str) -> None:
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"^model: does not say which checkpoint it was trained on"):
        resolve(str(adapter))


def test_an_adapter_that_is_nowhere_is_refused_at_once(tmp_path: Path, adapter: Path) -> None:
    """The hub is asked only about what looks like OWNER/NAME."""
    for name in ("nope", str(tmp_path / "nope"), "./nope"):
        with pytest.raises(ModelError, match=r"adapter: no such directory \(found .*nope'\)"):
            resolve("base", name)
    assert resolve("base", "owner/name").adapter == "owner/name"
    assert resolve("base", str(adapter)).adapter == str(adapter)


def test_a_checkpoint_is_one_whatever_else_lies_in_its_folder(adapter: Path) -> None:
    """Adapters of TRL lie beside the model they were merged into; other programs write a status.json, too."""
    for name in ("config.json", "model.safetensors", "status.json"):
        (adapter / name).write_text("{}")
    assert resolve(str(adapter)) == ModelRef(path=str(adapter))
