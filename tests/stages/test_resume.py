"""Killed at any moment, the same command ends in the same bytes as a run nobody touched."""

from __future__ import annotations

import copy
import json
import multiprocessing
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

from tests.stages.doomed import run_and_die

WORDS = ("red", "green", "blue", "cat", "dog", "sun", "moon", "tree", "river", "stone")
# What says when and where a run was made, not what it made.
DIARIES = ("status.json", "ledger.jsonl", "environment.json", "plan.yaml", ".lock", "summary.json")


def write_data(folder: Path) -> None:
    draw = random.Random(0)
    words = [(draw.choice(WORDS), draw.choice(WORDS)) for _ in range(20)]
    rows = [{"instruction": f"Say {a} and {b}.", "input": "", "output": f"{a} and {b}"} for a, b in words]
    (folder / "sft.json").write_text(json.dumps(rows))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {a}."}) + "\n" for a, _ in words[:10]))
    (folder / "judge.txt").write_text("Task: {instruction}\nAnswer: {response}\nEnd with Score: 0 to 5.\n")


def plan_of(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """sft -> prepare -> dpo, with dropout, micro-batches, evaluation and more checkpoints than are kept."""
    train = {"batch_size": 4, "micro_batch_tokens": 96, "learning_rate": 1e-3, "precision": "fp32"}
    train["keep_checkpoints"] = 1
    return {
        "run": "",
        "model": {"path": str(checkpoint), "device": "cpu", "lora": {"rank": 4, "alpha": 8, "dropout": 0.2}},
        "stages": [
            {
                "kind": "sft", "name": "sft",
                "data": {"files": [str(folder / "sft.json")], "max_length": 96, "eval_fraction": 0.2},
                "train": {**train, "max_steps": 6, "save_every": 2, "eval_every": 3},
            },
            {
                "kind": "prepare", "name": "prepare", "data": {"files": [str(folder / "prompts.jsonl")]},
                "rollout": {"group_size": 3, "batch_size": 6, "max_new_tokens": 10, "temperature": 1.0},
                "judge": {"template": str(folder / "judge.txt"), "votes": 2, "max_new_tokens": 5, "temperature": 1.0},
                "num_logged": 4,
            },
            {
                "kind": "dpo", "name": "dpo",
                "data": {"files": ["@prepare/dpo_training.jsonl"], "max_length": 96, "eval_fraction": 0.2},
                "train": {**train, "max_steps": 5, "save_every": 2},
            },
        ],
    }  # fmt: skip


def clock(key: str) -> bool:
    """Whether a number says how fast and large the machine was."""
    return "seconds" in key or key == "peak_memory_bytes"


def result(root: Path) -> dict[str, object]:
    """Everything a run made, by name: bytes, or rows without their clocks."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        # A file a kill left half written keeps its hidden name, and nothing reads it.
        if not path.is_file() or path.name in DIARIES or any(part.startswith(".") for part in Path(name).parts):
            continue
        if path.name == "metrics.jsonl" or path.parent.name == "rounds":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: value for key, value in row.items() if not clock(key)} for row in rows]
        else:
            found[name] = path.read_bytes()
    summary = copy.deepcopy(json.loads((root / "summary.json").read_text()))
    for stage in summary["stages"]:
        stage.pop("seconds")
        for name in [name for name in stage["metrics"] if "second" in name]:
            stage["metrics"].pop(name)
    found["summary.json"] = [summary["stages"], summary["evaluation"]]
    return found


def assert_same(found: dict[str, object], expected: dict[str, object]) -> None:
    assert sorted(found) == sorted(expected)
    for name, content in expected.items():
        assert found[name] == content, name


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return plan_of(folder, tiny_checkpoint)


def spawner(plan: dict[str, Any], *preload: str) -> Callable[..., int]:
    """Runs the plan in a process of its own and returns its exit code. Imports are paid once, by a fork server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.stages.doomed", "transformers.models.qwen3.modeling_qwen3", *preload])

    def run(root: Path, word: str = "", number: int = 0, log: str | None = None) -> int:
        process = context.Process(target=run_and_die, args=({**plan, "run": str(root)}, word, number, log))
        process.start()
        process.join(120)
        assert process.exitcode is not None, "still running"
        return process.exitcode

    return run


@pytest.fixture(scope="module")
def spawn(plan: dict[str, Any]) -> Callable[..., int]:
    return spawner(plan)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, spawn: Callable[..., int]) -> Path:
    """The run that nobody touched, and beside it the list of everything that happened."""
    folder = tmp_path_factory.mktemp("whole")
    assert spawn(folder / "run", log=str(folder / "events")) == 0
    return folder


@pytest.fixture(scope="module")
def expected(whole: Path) -> dict[str, object]:
    made = result(whole / "run")
    for name in (
        "stages/01-sft/adapter/adapter_model.safetensors", "stages/02-prepare/raw_responses.jsonl",
        "stages/02-prepare/dpo_training.jsonl", "stages/02-prepare/grpo_training.jsonl",
        "stages/02-prepare/gspo_training.jsonl", "stages/03-dpo/adapter/adapter_model.safetensors",
        "stages/03-dpo/reference.f32", "stages/03-dpo/metrics.jsonl",
    ):  # fmt: skip
        assert made[name], name
    return made


MOMENTS = [
    ("os.rename /environment.json", 1, "nothing says whose directory it is"),
    ("os.rename /plan.yaml", 1, "the plan is on its way to its name"),
    ("open /ledger.jsonl", 1, "the run is claimed, nothing begun"),
    ("os.rename /stages/01-sft/status.json", 1, "a stage folder without its status"),
    ("line 01-sft", 3, "two steps, no checkpoint yet"),
    ("os.rename /stages/01-sft/checkpoints/.step-000002.tmp/state.json", 1, "inside the first checkpoint"),
    ("os.rename /stages/01-sft/checkpoints/step-000002", 1, "the first checkpoint whole, but unnamed"),
    ("line 01-sft", 4, "a step after the first checkpoint"),
    ("line 01-sft", 5, "evaluated, but its best not saved"),
    ("os.remove state.json", 1, "half of an old checkpoint removed"),
    ("open /stages/01-sft/.adapter.tmp", 1, "publishing the adapter"),
    ("os.rename /stages/01-sft/adapter", 1, "the adapter copied, but unnamed"),
    ("os.rename /stages/01-sft/status.json", 2, "all done but the word"),
    ("tick prepare", 2, "answers"),
    ("/stages/02-prepare/rollouts.jsonl", 3, "about to store answers"),
    ("os.rename /stages/02-prepare/dpo_training.jsonl", 1, "writing the pairs"),
    ("os.rename /stages/03-dpo/reference.f32", 1, "the reference opened, but unnamed"),
    ("line 03-dpo", 5, "training on pairs"),
    ("os.rename /stages/03-dpo/adapter", 1, "publishing the last adapter"),
    ("os.rename /summary.json", 2, "the last summary"),
]


@pytest.mark.parametrize(("word", "number"), [m[:2] for m in MOMENTS], ids=[m[2] for m in MOMENTS])
def test_killed_there_it_ends_in_the_same_bytes(
    word: str, number: int, tmp_path: Path, spawn: Callable[..., int], expected: dict[str, object]
) -> None:
    assert spawn(tmp_path / "run", word, number) == -signal.SIGKILL, "the moment never came"
    assert spawn(tmp_path / "run") == 0
    assert_same(result(tmp_path / "run"), expected)


def test_killed_over_and_over(tmp_path: Path, spawn: Callable[..., int], expected: dict[str, object]) -> None:
    """One run, killed again and again at whatever it does by then."""
    kills = 0
    for number in (4, 17, 45, 60, 75, 70, 55, 90, 80):
        kills += spawn(tmp_path / "run", "", number) == -signal.SIGKILL
    assert kills >= 5
    assert spawn(tmp_path / "run") == 0
    assert_same(result(tmp_path / "run"), expected)


def test_a_torn_line_is_made_again(tmp_path: Path, spawn: Callable[..., int], expected: dict[str, object]) -> None:
    """A line of the log cut short by the kill, in a character of several bytes."""
    assert spawn(tmp_path / "run", "line 01-sft", 5) == -signal.SIGKILL
    for file in (tmp_path / "run/stages/01-sft/metrics.jsonl", tmp_path / "run/ledger.jsonl"):
        with file.open("ab") as handle:
            handle.write('{"step": 9, "not": "ä'.encode()[:-1])
    assert spawn(tmp_path / "run") == 0
    assert_same(result(tmp_path / "run"), expected)


def test_nothing_is_done_twice(tmp_path: Path, spawn: Callable[..., int], whole: Path) -> None:
    """The same command on a finished run skips every stage and touches none of its files."""
    before = result(whole / "run")
    assert spawn(whole / "run", log=str(tmp_path / "again")) == 0
    happened = (tmp_path / "again").read_text()
    assert "tick" not in happened and "line" not in happened and "/stages/" not in happened
    assert_same(result(whole / "run"), before)


def test_the_command_itself_killed_from_outside(
    tmp_path: Path, plan: dict[str, Any], spawn: Callable[..., int], expected: dict[str, object]
) -> None:
    """`whet run` as a person starts it, killed by another process as soon as a few steps are logged."""
    root = tmp_path / "run"
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump({**plan, "run": str(root)}))
    process = subprocess.Popen(
        [sys.executable, "-m", "whet", "run", str(file)], cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONHASHSEED": "11"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    log = root / "stages/01-sft/metrics.jsonl"
    deadline = time.monotonic() + 120
    while (
        process.poll() is None
        and time.monotonic() < deadline
        and not (log.exists() and log.read_bytes().count(b"\n") > 2)
    ):
        time.sleep(0.005)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    assert spawn(root) == 0
    assert_same(result(root), expected)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_killed_anywhere(
    part: int, tmp_path: Path, spawn: Callable[..., int], whole: Path, expected: dict[str, object]
) -> None:
    """A sample of all moments there are: every eighth event, shifted by `part`, at most 20 of them."""
    num = len((whole / "events").read_text().splitlines())
    for number in random.Random(part).sample(range(1 + part, num + 1, 8), k=20):
        root = tmp_path / str(number)
        assert spawn(root, "", number) == -signal.SIGKILL
        assert spawn(root) == 0
        assert_same(result(root), expected)
