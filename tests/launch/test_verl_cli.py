from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.launch.exported import overrides, sums
from tests.launch.test_verl_rlhf import written
from whet.cli import main
from whet.demo.plan import BASE
from whet.launch.verl.start import PYTHON


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["export", "verl", *words])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def plan_file(folder: Path) -> str:
    plan = {
        "run": str(folder / "run"), "model": {"path": str(BASE), "lora": None},
        "stages": [{
            "kind": "gspo", "data": {"files": [str(sums(folder / "sums.jsonl"))]}, "reward": {"type": "numeric"},
            "rollout": {"max_new_tokens": 32}, "train": {"batch_size": 16},
        }],
    }  # fmt: skip
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return str(folder / "plan.yaml")


def test_keys_of_the_plan_and_of_the_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    words = [plan_file(tmp_path), "rollout.group_size=6", "verl.n_gpus_per_node=3", "--out", out]
    code, printed, _ = said(capsys, *words)
    assert code == 0 and f"written: {out}/run.sh" in printed
    found = overrides(tmp_path / "out")
    assert found["actor_rollout_ref.rollout.n"] == "6" and found["trainer.n_gpus_per_node"] == "3"
    assert found["actor_rollout_ref.actor.policy_loss.loss_mode"] == "'gspo'"


def test_what_run_lacks_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\necho verl,vllm\necho 0\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv(PYTHON, str(tmp_path / "python"))
    code, _, error = said(capsys, written(tmp_path), "--stage", "grpo", "--out", str(tmp_path / "out"), "--run")
    assert code == 2 and len(error.splitlines()) == 1
    assert "the folder is written, and verl cannot run here" in error and "without verl,vllm" in error
    assert (tmp_path / "out" / "run.sh").exists()


def test_a_folder_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = said(capsys, plan_file(tmp_path))
    assert code == 2 and "--out: where to?" in error
