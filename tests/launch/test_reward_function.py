"""The file that verl loads, without verl: a process of whet's beside this one.

Those marked verl start many of them: `make test-verl` runs them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from whet.config.model import Model
from whet.config.rewards import Reward
from whet.config.verl import Verl
from whet.launch.verl import reward_function
from whet.launch.verl.spec import Spec

SLOW = """
import time

def judge(prompt, completion, reference=None):
    if completion == "hang":
        while True:
            time.sleep(1)
    if completion == "crash":
        import os, signal
        os.kill(os.getppid(), signal.SIGKILL)
    return float(completion == reference)
"""


def loaded(folder: Path, reward: dict[str, Any], **options: Any) -> ModuleType:
    """A copy of the file beside its settings, loaded by its path as verl does it."""
    from pydantic import TypeAdapter

    adapter: TypeAdapter[Reward] = TypeAdapter(Reward)
    spec = Spec(
        reward=adapter.validate_python(reward), model=Model(path="none"), served=None, engine="vllm", max_new_tokens=32
    )
    (folder / "reward.json").write_text(json.dumps(spec.to_json(Verl(**options))))
    copy = folder / "reward.py"
    copy.write_text(Path(reward_function.__file__).read_text())
    found = importlib.util.spec_from_file_location("exported_reward", copy)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def scores(module: ModuleType, answers: Sequence[str], reference: str = "5") -> list[dict[str, float]]:
    messages = json.dumps([{"role": "user", "content": "2+3?"}])
    extra = {"messages": messages, "columns": "{}", "answer": "", "file": "a.jsonl", "line": 1}

    async def every() -> list[dict[str, float]]:
        return await asyncio.gather(*(module.compute_score("a", text, reference, extra) for text in answers))

    return asyncio.run(every())


def test_scores_come_back_in_order(tmp_path: Path) -> None:
    found = scores(loaded(tmp_path, {"type": "numeric"}), [f"It is {n}." for n in range(8)])
    assert [one["score"] for one in found] == [float(n == 5) for n in range(8)]


def test_a_part_of_any_name_is_not_taken_for_the_reward(tmp_path: Path) -> None:
    parts = [{"name": "score", "reward": {"type": "numeric"}, "weight": 2.0},
             {"name": "unscored", "reward": {"type": "contains"}}]  # fmt: skip
    (found,) = scores(loaded(tmp_path, {"type": "composite", "parts": parts}), ["5"])
    assert found == {"score": 3.0, "unscored": 0.0}


@pytest.mark.verl
def test_a_function_that_hangs_or_takes_the_process_with_it(tmp_path: Path) -> None:
    """The deadline of a function is its own; beyond it stands the one of the file, for what has none."""
    (tmp_path / "mine.py").write_text(SLOW)
    reward = {"type": "custom", "path": f"{tmp_path}/mine.py:judge", "timeout": 1.0}
    found = scores(loaded(tmp_path, reward, max_unscored=1.0, unscored=-1.0), ["5", "hang", "6"])
    assert [(one["score"], one["unscored"]) for one in found] == [(1.0, 0.0), (-1.0, 1.0), (0.0, 0.0)]
    found = scores(loaded(tmp_path, reward, max_unscored=1.0), ["5", "crash", "6"])
    assert found[1]["unscored"] == 1.0, "three processes have ended of it"


@pytest.mark.verl
def test_a_deadline_for_what_has_none(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SLOW)
    reward = {"type": "custom", "path": f"{tmp_path}/mine.py:judge", "timeout": 600.0}
    module = loaded(tmp_path, reward, reward_deadline=8.0, max_unscored=1.0)
    assert [one["score"] for one in scores(module, ["5"])] == [1.0]
    (found,) = scores(module, ["hang"])
    assert found == {"score": 0.0, "unscored": 1.0}
    assert [one["score"] for one in scores(module, ["5"])] == [1.0], "a new process has taken its place"


@pytest.mark.verl
def test_too_many_without_a_score_end_the_run(tmp_path: Path) -> None:
    module = loaded(tmp_path, {"type": "numeric"})
    with pytest.raises(RuntimeError, match="responses have no score; the last: no reference"):
        scores(module, ["It is 5."] * 60, reference="")


def test_what_is_missing_is_said_at_once(tmp_path: Path) -> None:
    module = loaded(tmp_path, {"type": "custom", "path": f"{tmp_path}/nowhere.py:judge"})
    with pytest.raises(RuntimeError, match=r"whet cannot score: .*nowhere\.py"):
        scores(module, ["5"])
