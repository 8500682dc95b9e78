"""reject killed at any moment: nothing lost, nothing asked twice that was stored, the same bytes in the end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.stages.test_resume import assert_same, result, spawner
from whet.runs.files import read_json, read_jsonl

MOMENTS = [
    ("tick reject", 2, "answers stored, not scored"),
    ("os.rename /stages/01-reject/rejected.jsonl", 1, "one of the files has its name, the others not"),
    ("os.rename /stages/01-reject/reject.json", 1, "the records are there, the numbers are not"),
]
FOLDER = "stages/01-reject"
CHUNK = 32
"""Answers asked for together: four batches."""


def plan_of(folder: Path, checkpoint: Path, num: int) -> dict[str, Any]:
    rows = [{"prompt": f"Say {n} and {n + 1}."} for n in range(num)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "run": "",
        "model": {"path": str(checkpoint), "device": "cpu"},
        "stages": [
            {
                "kind": "reject", "name": "reject", "data": {"files": [str(folder / "prompts.jsonl")]},
                "rollout": {"group_size": 4, "batch_size": 8, "max_new_tokens": 8, "temperature": 1.0},
                "reward": {"type": "regex", "pattern": ".*[aeiou].*"}, "accept": {"order": "varied", "cut": True},
            },
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> dict[str, Any]:
    return plan_of(tmp_path_factory.mktemp("data"), tiny_checkpoint, 24)


@pytest.fixture(scope="module")
def spawn(plan: dict[str, Any]) -> Callable[..., int]:
    return spawner(plan)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, spawn: Callable[..., int]) -> dict[str, object]:
    root = tmp_path_factory.mktemp("whole") / "run"
    assert spawn(root) == 0
    made = result(root)
    assert all(made[f"{FOLDER}/{name}"] for name in ("accepted.jsonl", "rejected.jsonl", "preference.jsonl"))
    return made


@pytest.mark.parametrize(("word", "number"), [m[:2] for m in MOMENTS], ids=[m[2] for m in MOMENTS])
def test_killed_there_it_ends_in_the_same_bytes(
    word: str, number: int, tmp_path: Path, spawn: Callable[..., int], expected: dict[str, object]
) -> None:
    assert spawn(tmp_path / "run", word, number) == -signal.SIGKILL
    stored = (tmp_path / "run" / FOLDER / "rollouts.jsonl").read_bytes()
    assert spawn(tmp_path / "run") == 0
    assert_same(result(tmp_path / "run"), expected)
    assert (tmp_path / "run" / FOLDER / "rollouts.jsonl").read_bytes().startswith(stored), "what was stored stays"


@pytest.mark.slow
def test_killed_ten_times_while_2000_samples_are_drawn(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """`whet run` as a person starts it, killed by another process at random moments of its work."""
    plan = plan_of(tmp_path, tiny_checkpoint, 500)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start(plan, whole).wait()
    total = len(read_jsonl(whole / FOLDER / "rollouts.jsonl"))
    assert total == 2000
    store, draw, kept = killed / FOLDER / "rollouts.jsonl", random.Random(5), b""
    for kill in range(10):
        aim = (kill + draw.random()) * total / 10
        process = start(plan, killed)
        while process.poll() is None and lines(store) < aim:
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL, f"ended before kill {kill + 1}"
        content = store.read_bytes()
        assert content.startswith(kept), "nothing that was stored is asked again"
        rows = content.splitlines(keepends=True)
        kept = b"".join(rows[: len(rows) // CHUNK * CHUNK])
    assert start(plan, killed).wait() == 0
    made = [{name: content for name, content in result(run).items() if "report" not in name} for run in (killed, whole)]
    assert_same(*made)
    assert read_json(killed / FOLDER / "status.json")["metrics"]["num_answers"] == 2000


def start(plan: dict[str, Any], root: Path) -> subprocess.Popen[bytes]:
    file = root.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**plan, "run": str(root)}))
    return subprocess.Popen(
        [sys.executable, "-m", "whet", "run", str(file)], cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONHASHSEED": "11"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
