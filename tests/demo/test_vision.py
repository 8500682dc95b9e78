"""The demo of pictures: its inputs keep splits apart, its plan runs, and (slowly) every stage gains."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from whet.config.load import load_plan
from whet.data.verdict import parse_verdict, read_verdict
from whet.demo import vision
from whet.runs.files import read_jsonl


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, num in (("JUDGED", 12), ("PROMPTED", 8), ("HELD_OUT", 6), ("ANSWERED", 5), ("QUESTIONS", 6)):
        monkeypatch.setattr(vision, f"NUM_{name}", num)


@pytest.mark.usefixtures("small")
def test_inputs(tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    vision.write_inputs(folder, seed=0)
    cold, prompts = read_jsonl(folder / "train/cold_start.jsonl"), read_jsonl(folder / "train/prompts.jsonl")
    held_out, questions = read_jsonl(folder / "test/held_out.jsonl"), read_jsonl(folder / "test/questions.jsonl")
    answered = read_jsonl(folder / "train/answered.jsonl")
    assert [*map(len, (cold, prompts, answered, held_out, questions))] == [12, 16, 5, 12, 6]
    assert all(read_verdict(row["messages"][1]["content"]) for row in cold)
    assert all(parse_verdict(row["reference"]) for row in [*prompts, *held_out])
    seen = {Path(image).name for row in [*cold, *prompts, *answered] for image in row["images"]}
    unseen = {Path(image).name for row in [*held_out, *questions] for image in row["images"]}
    assert seen.isdisjoint(unseen)
    assert {image.name for image in (folder / "pictures").iterdir()} == seen | unseen
    assert all((folder / "train" / image).is_file() for row in [*cold, *answered] for image in row["images"])


@pytest.mark.usefixtures("small")
def test_inputs_killed_half_way_are_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vision, "questions", killed)
        with pytest.raises(KeyboardInterrupt):
            vision.write_inputs(tmp_path / "inputs", seed=0)
    assert not (tmp_path / "inputs").exists()
    vision.write_inputs(tmp_path / "inputs", seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["inputs"]
    assert (tmp_path / "inputs/test/questions.jsonl").is_file()


@pytest.mark.usefixtures("small")
def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        vision.write_inputs(tmp_path / name, seed=3)
    files = [sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.*")) for name in "ab"]
    assert files[0] == files[1]
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files[0])


def test_the_plan_loads(tmp_path: Path) -> None:
    plan = load_plan(vision.vision_plan(tmp_path / "run", seed=1), [])
    assert [stage.name for stage in plan.stages] == [
        "cold_start", "reject", "refined", "again", "pair", "dpo", "grpo", "evaluate",
    ]  # fmt: skip


@pytest.mark.usefixtures("small")
def test_a_few_steps_of_every_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few steps teach no verdict: what counts as right here is to speak of stars, which base and model often do."""
    stars = "{type: regex, pattern: '(?s).*star.*'}"
    short = [f"stages.{name}.train.max_steps=1" for name in ("cold_start", "refined", "dpo", "grpo")]
    rejecting = [
        f"stages.{name}.{key}" for name in ("reject", "again")
        for key in (f"reward={stars}", "accept.cut=true", "rollout.max_new_tokens=12", "rollout.temperature=1.5",
                    "rollout.group_size=4")
    ]  # fmt: skip
    vision.run_vision(
        tmp_path / "run", 0,
        [*short, *rejecting, "stages.grpo.train.batch_size=2", "stages.grpo.rollout.group_size=4",
         "stages.grpo.rollout.max_new_tokens=12", f"stages.grpo.reward={stars}",
         "stages.evaluate.tasks.pairs.max_new_tokens=8", "stages.evaluate.tasks.seeing.max_new_tokens=8"],
    )  # fmt: skip
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {stage["status"] for stage in summary["stages"]} == {"done"}
    measured = {(m["stage"], m["metric"]): m for m in summary["evaluation"] if m["task"] == "pairs"}
    assert {stage for stage, _ in measured} == {"base", "cold_start", "refined", "dpo", "grpo"}
    assert measured["base", "accuracy"]["num"] == 6
    assert "held-out pairs, each in both orders" in capsys.readouterr().out
    assert (tmp_path / "run" / "report" / "index.html").is_file()


def test_the_table_fits_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    metrics = ("accuracy", "consistency", "first", "readable")
    asked = [*(("pairs", metric) for metric in metrics), ("seeing", "accuracy")]
    vision.print_table({"evaluation": [
        {"stage": stage, "task": task, "metric": metric, "value": 0.82, "low": 0.792, "high": 0.845, "num": 400}
        for stage in ("base", "cold_start", "refined", "dpo", "grpo") for task, metric in asked
    ]})  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line.rstrip()) <= 80 and "…" not in line for line in lines)
    [row] = [line for line in lines if line.startswith("cold_start")]
    assert re.split(r" {2,}", row) == ["cold_start", "0.820 [0.792, 0.845]", *["0.820"] * 4, "66.9 / 68.6"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_rejection_sampling_and_online_rl_gain(seed: int, tmp_path: Path) -> None:
    vision.run_vision(tmp_path / "run", seed)
    measures = json.loads((tmp_path / "run" / "summary.json").read_text())["evaluation"]
    right = {m["stage"]: m for m in measures if (m["task"], m["metric"]) == ("pairs", "accuracy")}
    assert right["grpo"]["low"] > right["cold_start"]["high"]
