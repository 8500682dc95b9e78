"""Rounds of self-rewarding on the playground: the plan, and (minutes long) what it shows."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from whet.config.load import load_plan
from whet.demo.playground import check, judged_answers, prompts
from whet.demo.rounds import rounds_plan, run_rounds, write_inputs


def test_the_plan_loads_and_no_round_asks_what_is_held_out(tmp_path: Path) -> None:
    plan = load_plan(rounds_plan(tmp_path / "run", 1, 3))
    (loop,) = plan.loops
    assert loop.start == "sft" and loop.models == ("dpo-1", "dpo-2", "dpo-3")
    (stage,) = [stage for stage in plan.stages if stage.name == "prompts-2"]
    assert {Path(file).name for data in stage.exclude for file in data.files} == {"held_out.jsonl", "judged.jsonl"}
    assert stage.seen.files == ("@prompts-1/prompts.jsonl",)


def test_stored_answers_are_of_held_out_tasks_and_rightly_labelled() -> None:
    rows = judged_answers(60, seed=3)
    assert all(row["label"] == (check(row["prompt"], row["completion"], **row) == 1.0) for row in rows)
    assert 0.25 < sum(row["label"] for row in rows) / len(rows) < 0.75
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in prompts("train", 500, 3)}


def test_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import whet.demo.rounds as rounds

    sizes = ("DEMONSTRATIONS", "JUDGE_EXAMPLES", "HELD_OUT", "JUDGED")
    for name in (*(f"NUM_{size}" for size in sizes), "PROMPTS_A_ROUND", "PRACTICE_A_ROUND"):
        monkeypatch.setattr(rounds, name, 8)
    write_inputs(tmp_path, 0, 2)
    lines = {file.name: len(file.read_text().splitlines()) for file in tmp_path.glob("*.jsonl")}
    assert lines["pool.jsonl"] == 20 and lines["held_out.jsonl"] == lines["judged.jsonl"] == 8
    assert lines["practice_1.jsonl"] == lines["practice_2.jsonl"] == 8 and "practice_3.jsonl" not in lines


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["plan", "rounds"])
def test_inputs_killed_half_way_are_written_anew(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both demos write `judge.txt` last; the kill comes there."""
    module = import_module(f"whet.demo.{name}")
    for size in [key for key in vars(module) if key.startswith("NUM_") or key.endswith("_A_ROUND")]:
        monkeypatch.setattr(module, size, 8)
    start = {"plan": lambda: module.run_demo(tmp_path, 0), "rounds": lambda: module.run_rounds(tmp_path, 0, 2)}[name]
    monkeypatch.setattr("whet.stages.pipeline.run_plan", killed)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            start()
    assert not (tmp_path / "inputs").exists()
    with pytest.raises(KeyboardInterrupt):
        start()
    assert [path.name for path in tmp_path.iterdir()] == ["inputs"]
    assert (tmp_path / "inputs/judge.txt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_three_rounds_gain(seed: int, tmp_path: Path) -> None:
    """Held-out exact accuracy M1 < M2 < M3, M3 over M1 outside the interval; the judge and the lengths stay."""
    run_rounds(tmp_path / "run", seed, 3)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (loop,) = summary["loops"]
    m0, m1, m2, m3 = loop["rounds"]
    assert m0["value"] < m1["value"] < m2["value"] < m3["value"] and m3["low"] > m1["high"]
    assert m3["mean_length"] < 1.2 * m1["mean_length"]
    judging = {m["stage"]: m for m in summary["evaluation"] if m["metric"] == "agreement"}
    assert judging["dpo-3"]["value"] > judging["dpo-1"]["low"]
    unscored = [m["value"] for m in summary["evaluation"] if m["metric"] == "unscored"]
    assert max(unscored) < 0.02
