"""Online RL killed at any moment: the same command ends in the same weights, metrics, completions and rollouts."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stages.test_resume import WORDS, assert_same, result, spawner


def plan_of(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """GRPO with several steps a round and a held-out evaluation, then PPO with an adaptive KL and a value head."""
    train = {
        "batch_size": 4, "micro_batch_tokens": 96, "learning_rate": 1e-2, "precision": "fp32", "keep_checkpoints": 1,
        "max_steps": 8, "save_every": 3,
    }  # fmt: skip
    reward = {
        "type": "composite",
        "parts": [
            {"name": "long", "reward": {"type": "length", "unit": "characters", "target": 30}, "normalise": "running"},
            {"name": "short", "reward": {"type": "length", "target": 5}, "weight": 0.1},
        ],
    }  # fmt: skip
    common = {
        "data": {"files": [str(folder / "prompts.jsonl")], "eval_fraction": 0.2},
        "reward": reward,
    }
    return {
        "run": "",
        "model": {"path": str(checkpoint), "device": "cpu", "lora": {"rank": 4, "alpha": 8, "dropout": 0.1}},
        "stages": [
            {
                "kind": "grpo", "name": "grpo", **common, "rollout": {"group_size": 3, "max_new_tokens": 8},
                "objective": {"type": "grpo", "num_iterations": 2, "minibatches": 2, "filter_groups": True},
                "train": {**train, "eval_every": 4},
            },
            {
                "kind": "ppo", "name": "ppo", **common, "rollout": {"group_size": 2, "max_new_tokens": 8},
                "objective": {"epochs": 2, "adaptive_kl": {"target": 0.01, "horizon": 20.0}, "kl_weight": 0.1},
                "value": {"type": "policy", "layers": 2}, "train": train,
            },
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("data")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {word}."}) + "\n" for word in WORDS))
    return plan_of(folder, tiny_checkpoint)


@pytest.fixture(scope="module")
def spawn(plan: dict[str, Any]) -> Callable[..., int]:
    return spawner(plan, "whet.stages.online")


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
        "stages/01-grpo/adapter/adapter_model.safetensors", "stages/01-grpo/rounds/000001.jsonl",
        "stages/01-grpo/completions.jsonl", "stages/02-ppo/checkpoints/step-000008/value_head.safetensors",
        "stages/02-ppo/rounds/000003.jsonl", "stages/02-ppo/measured/000003.safetensors",
    ):  # fmt: skip
        assert made[name], name
    return made


MOMENTS = [
    ("os.rename /stages/01-grpo/rounds/000000.jsonl", 1, "the first rollouts scored, but unnamed"),
    ("os.rename /stages/01-grpo/measured/000000", 1, "the reference measured, but unnamed"),
    ("line 01-grpo", 20, "among the completions of a round"),
    ("os.rename /stages/01-grpo/checkpoints/step-000003", 1, "within a round, the checkpoint unnamed"),
    ("os.rename /stages/01-grpo/adapter", 1, "publishing the adapter"),
    ("os.rename /stages/02-ppo/measured/000001.json", 1, "the KL's weight moved, but not kept"),
    ("os.rename /stages/02-ppo/checkpoints/step-000003", 1, "within PPO's round"),
]


@pytest.mark.parametrize(("word", "number"), [m[:2] for m in MOMENTS], ids=[m[2] for m in MOMENTS])
def test_killed_there_it_ends_in_the_same_bytes(
    word: str, number: int, tmp_path: Path, spawn: Callable[..., int], expected: dict[str, object]
) -> None:
    assert spawn(tmp_path / "run", word, number) == -signal.SIGKILL, "the moment never came"
    assert spawn(tmp_path / "run") == 0
    assert_same(result(tmp_path / "run"), expected)


@pytest.mark.parametrize("part", range(5))
def test_killed_at_random_moments(
    part: int, tmp_path: Path, spawn: Callable[..., int], whole: Path, expected: dict[str, object]
) -> None:
    """Ten moments, drawn among all there are: two of each fifth, the second kill in the run that goes on."""
    num = len((whole / "events").read_text().splitlines())
    draw = random.Random(part)
    first = draw.randrange(1 + part * num // 5, (part + 1) * num // 5)
    assert spawn(tmp_path / "run", "", first) == -signal.SIGKILL
    assert spawn(tmp_path / "run", "", draw.randrange(20, 60)) in (0, -signal.SIGKILL)
    assert spawn(tmp_path / "run") == 0
    assert_same(result(tmp_path / "run"), expected)


def test_nothing_is_done_twice(tmp_path: Path, spawn: Callable[..., int], whole: Path) -> None:
    """The same command on a finished run draws nothing, scores nothing and touches no file of its stages."""
    before = result(whole / "run")
    assert spawn(whole / "run", log=str(tmp_path / "again")) == 0
    happened = (tmp_path / "again").read_text()
    assert "tick" not in happened and "line" not in happened and "/stages/" not in happened
    assert_same(result(whole / "run"), before)
