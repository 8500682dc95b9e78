"""What counts as changed: content and configuration, never dates."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import save_file

from whet.errors import RunError
from whet.runs import ledger
from whet.runs.files import read_jsonl, write_json, write_jsonl, write_text
from whet.runs.layout import RunPaths, StagePaths
from whet.runs.ledger import (
    Status,
    content_hash,
    first_difference,
    read_status,
    record_event,
    seconds_so_far,
    write_status,
)
from whet.schema.artifacts import Measure, ModelRef


def test_hash_of_a_file_is_of_its_bytes(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"abc")
    # SHA-256 of "abc", from FIPS 180-2.
    assert content_hash(one) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    other.write_bytes(b"abc")
    os.utime(other, (1, 1))
    assert content_hash(other) == content_hash(one)


def test_a_file_rewritten_in_this_process_is_hashed_again(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"abc")
    before = content_hash(file)
    file.write_bytes(b"abd")
    os.utime(file, ns=(10**18, 10**18))
    assert content_hash(file) != before


def test_hash_of_a_directory(tmp_path: Path) -> None:
    def make(name: str, files: dict[str, str]) -> str:
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        return content_hash(tmp_path / name)

    hashes = [
        make("a", {"x": "1", "sub/y": "2"}),
        make("renamed", {"x": "1", "sub/z": "2"}),
        make("swapped", {"x": "2", "sub/y": "1"}),
        make("moved", {"x": "1", "y": "2"}),
        make("more", {"x": "1", "sub/y": "2", "w": ""}),
    ]
    assert len(set(hashes)) == 5
    assert make("same", {"sub/y": "2", "x": "1"}) == hashes[0]


@pytest.mark.parametrize("changed", ["model.layers.0.v_proj.weight", "model.layers.1.v_proj.weight"])
def test_large_weights_count_by_every_tensor(changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a merge that has touched a few matrices in the middle of the file."""
    for name, num in (("WHOLE_FILE_BYTES", 8), ("EDGE_BYTES", 4), ("PIECE_BYTES", 16)):
        monkeypatch.setattr(ledger, name, num)
    names = ["model.embed_tokens.weight", *(f"model.layers.{n}.{w}.weight" for n in (0, 1) for w in ("mlp", "v_proj"))]
    tensors = {name: torch.ones(4, 64 if "v_proj" in name else 1024) for name in [*names, "model.norm.weight"]}
    save_file(tensors, tmp_path / "a")
    save_file(tensors | {changed: tensors[changed] * 2}, tmp_path / "b")
    save_file(tensors, tmp_path / "same")
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "same") != content_hash(tmp_path / "b")


def test_other_large_files_count_at_even_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, num in (("WHOLE_FILE_BYTES", 8), ("EDGE_BYTES", 4), ("PIECE_BYTES", 4), ("STRIDE", 32)):
        monkeypatch.setattr(ledger, name, num)
    text = b"x" * 256
    (tmp_path / "a").write_bytes(text)
    (tmp_path / "b").write_bytes(text[:100] + b"y" * 32 + text[132:])
    assert content_hash(tmp_path / "a") != content_hash(tmp_path / "b")


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_large_files_count_by_size_and_edges(place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "WHOLE_FILE_BYTES", 8)
    monkeypatch.setattr(ledger, "EDGE_BYTES", 4)
    variants = [b"0123456789abcdef", b"X123456789abcdef", b"0123456789abcdeX", b"0123456789abcdef0"]
    (tmp_path / "a").write_bytes(variants[0])
    (tmp_path / "b").write_bytes(variants[place])
    assert (content_hash(tmp_path / "a") == content_hash(tmp_path / "b")) == (place == 0)


@pytest.mark.parametrize(
    ("left", "right", "says"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, "a.b.1 (2 -> 3)"),
        ({"a": {"b": [1]}}, {"a": {"b": [1, 2]}}, "a.b ([1] -> [1, 2])"),
        ({"a": 1}, {"a": 1, "new": "x"}, 'new (null -> "x")'),
        ({"a": {"b": 1}}, {"a": None}, 'a ({"b": 1} -> null)'),
        ({"a": True}, {"a": "true"}, 'a (true -> "true")'),
        ({"a": "x" * 99}, {"a": "y"}, None),
    ],
)
def test_first_difference(left: object, right: object, says: str | None) -> None:
    found = first_difference(left, right)
    if left == {"a": "x" * 99}:
        assert found is not None and len(found) < 90
    else:
        assert found == says


def test_status_survives_the_disk(tmp_path: Path) -> None:
    measure = Measure(stage="sft", task="exact", metric="accuracy", value=0.1, low=0.0, high=0.2, num=7)
    status = Status(
        name="sft", kind="sft", status="done", config={"stage": {"lr": 1e-4}}, inputs={"a.json": "12"}, started="now",
        seconds=1.5, metrics={"loss": 0.25}, model={"path": "base", "adapter": "there"},
        evaluation=(asdict(measure),),
    )  # fmt: skip
    paths = StagePaths(tmp_path / "01-sft")
    assert read_status(paths) is None
    write_status(paths, status)
    again = read_status(paths)
    assert again == status and again is not None
    assert again.result.model == ModelRef(path="base", adapter="there")
    assert again.result.evaluation == (measure,)
    assert again.why_stale({"stage": {"lr": 1e-4}}, {"a.json": "12"}) is None
    assert again.why_stale({"stage": {"lr": 2e-4}}, {"a.json": "12"}) == "changed: stage.lr (0.0001 -> 0.0002)"
    assert again.why_stale({"stage": {"lr": 1e-4}}, {"a.json": "13", "b": "1"}) == "changed: a.json, b"


def test_a_config_read_back_is_not_a_change(tmp_path: Path) -> None:
    """Tuples become lists and integers stay integers on the way through JSON: neither may look like an edit."""
    from whet.config.stage import SftStage

    stage = SftStage.model_validate(
        {"name": "s", "data": {"files": ["a"]}, "train": {"learning_rate": 1e-5, "betas": [0.9, 0.95]}}
    )
    config = {"stage": stage.model_dump(mode="json")}
    paths = StagePaths(tmp_path)
    write_status(paths, Status(name="s", kind="sft", status="done", config=config, inputs={}, started="now"))
    again = read_status(paths)
    assert again is not None and again.why_stale(config, {}) is None


def test_events_are_lines(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "run")
    record_event(paths, "started", stage="sft")
    with paths.ledger.open("a") as handle:
        handle.write('{"event": "to')
    record_event(paths, "done", stage="sft", seconds=1.0)
    assert [(row["event"], row["stage"]) for row in read_jsonl(paths.ledger)] == [("started", "sft"), ("done", "sft")]


def test_how_a_server_is_asked_is_no_difference() -> None:
    """After an outage somebody gives it more time: the answers that are there stay what they were."""
    engine = {"type": "http", "model": "m", "concurrency": 16, "timeout": 600.0, "retries": 6}
    assert first_difference({"engine": engine}, {"engine": {**engine, "concurrency": 4, "timeout": 9.0}}) is None
    found = first_difference({"engine": engine}, {"engine": {**engine, "model": "n"}})
    assert found == 'engine.model ("m" -> "n")'
    # a reward's own limit decides which calls fail
    custom = {"type": "custom", "timeout": 1.0, "concurrency": 4}
    assert first_difference(custom, {**custom, "timeout": 2.0}) is not None


def test_seconds_of_processes_before(tmp_path: Path) -> None:
    """A process that ended has written its seconds; one that was killed worked until its last line or checkpoint."""
    paths = StagePaths(tmp_path / "01-sft")

    def left(status: Literal["running", "interrupted"], seconds: float | None) -> float:
        state = Status(name="s", kind="sft", status=status, config={}, inputs={}, started="x", seconds=seconds)
        write_status(paths, state)
        os.utime(paths.status, (1000, 1000))
        return seconds_so_far(paths, state)

    assert left("running", None) == 0.0, "killed before it wrote anything"
    write_jsonl(paths.metrics, [])
    os.utime(paths.metrics, (1012.5, 1012.5))
    assert left("running", None) == 12.5
    assert left("running", 30.0) == 42.5
    assert left("interrupted", 30.0) == 30.0
    write_text(paths.checkpoints / "step-000002" / "state.json", "{}")
    os.utime(paths.checkpoints / "step-000002" / "state.json", (1020, 1020))
    assert left("running", 30.0) == 50.0
    for path in (paths.metrics, paths.checkpoints / "step-000002" / "state.json"):
        os.utime(path, (900, 900))
    assert left("running", 30.0) == 30.0, "lines of an earlier process, which is counted"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"later": 1}, r"has keys that this version of whet does not know \(found later\)"),
        ({"kind": None, "name": ...}, r"is damaged \(found without name\)"),
        ({"evaluation": [{"stage": "base"}]}, r"is damaged \(found without task"),
        ({"evaluation": None}, r"is damaged \(found no list but NoneType\)"),
    ],
)
def test_a_status_with_other_keys_is_one_line(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    paths = StagePaths(tmp_path)
    status = asdict(Status(name="s", kind="sft", status="done", config={}, inputs={}, started="x")) | change
    write_json(paths.status, {key: value for key, value in status.items() if value is not ...})
    with pytest.raises(RunError, match=rf"status\.json: {says}"):
        read_status(paths)
