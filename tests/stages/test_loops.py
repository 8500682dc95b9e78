"""Rounds as they run: in order, resumable, stopped by their rules, and what later stages go on from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from whet.config.load import load_plan
from whet.config.plan import Plan
from whet.errors import RunError
from whet.runs.files import read_json, read_jsonl, write_text
from whet.runs.ledger import Status
from whet.schema.artifacts import Measure, ModelRef, StageResult
from whet.stages import pipeline
from whet.stages.context import Context
from whet.stages.loops import judge_rounds
from whet.stages.pipeline import run_plan

WIDTH = 0.02
"""Half of every measured interval."""


class World:
    """Stands in for what stages do. The model of the n-th training has the n-th value and length."""

    def __init__(self) -> None:
        self.values = [0.2, 0.4, 0.6, 0.8]
        self.lengths = [10, 10, 10, 10]
        self.ran: list[str] = []
        self.started: dict[str, str] = {}
        self.dies_in = ""

    def stage(self, stage: Any, context: Context) -> StageResult:
        self.ran.append(stage.name)
        if stage.name == self.dies_in:
            raise KeyboardInterrupt
        self.started[stage.name] = Path(context.start.adapter or "base").parent.name
        if stage.kind == "evaluate":
            return self.evaluate(context)
        if stage.kind == "prepare":
            write_text(context.paths.file("dpo_training.jsonl"), stage.name)
            return StageResult()
        depth = len(Path(context.start.adapter, "weights").read_text()) if context.start.adapter else 0
        write_text(context.paths.adapter / "weights", "x" * (depth + 1))
        return StageResult(model=ModelRef(path=context.start.path, adapter=str(context.paths.adapter)))

    def evaluate(self, context: Context) -> StageResult:
        ref = context.models["previous"]
        label = next(name for name, other in context.models.items() if name != "previous" and other == ref)
        depth = len(Path(str(ref.adapter), "weights").read_text()) - 1
        value = self.values[depth]
        replies = [{"owner": label, "task": "held_out", "num_tokens": self.lengths[depth]} for _ in range(3)]
        write_text(context.paths.file("replies.jsonl"), "".join(json.dumps(row) + "\n" for row in replies))
        measure = Measure(
            stage=label, task="held_out", metric="accuracy", value=value, low=value - WIDTH, high=value + WIDTH, num=9
        )
        return StageResult(evaluation=(measure,))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(pipeline, "dispatch", world.stage)
    monkeypatch.setattr(pipeline, "check_ahead", lambda *_, **__: None)  # its held-out files are names alone
    return world


def plan(tmp_path: Path, *behind: Any, num: int = 3, before: str = "h.jsonl", **keys: Any) -> Plan:
    """`before` is what is measured before the rounds."""
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "a.jsonl").write_text("{}")
    first, evaluate = (
        {"kind": "evaluate", "tasks": [{"type": "exact", "name": "held_out", "data": {"files": [file]}}]}
        for file in (before, "h.jsonl")
    )
    dpo = {"kind": "dpo", "data": {"files": ["@prepare/dpo_training.jsonl"]}}
    return load_plan({
        "run": str(tmp_path / "run"), "model": {"path": str(tmp_path / "model")},
        "data": {"files": [str(tmp_path / "a.jsonl")]},
        "stages": ["sft", first, {"repeat": num, "stages": ["prepare", dpo, evaluate], **keys}, *behind],
    })  # fmt: skip


METRIC = {"metric": "held_out/accuracy"}


def test_each_round_starts_from_the_one_before(tmp_path: Path, world: World) -> None:
    summary = run_plan(plan(tmp_path, **METRIC))
    assert world.ran[:5] == ["sft", "evaluate", "prepare-1", "dpo-1", "evaluate-1"]
    assert [world.started[f"prepare-{n}"] for n in (1, 2, 3)] == ["01-sft", "04-dpo-1", "07-dpo-2"]
    (loop,) = summary["loops"]
    assert [(one["number"], one["model"], one["value"], one["mean_length"]) for one in loop["rounds"]] == [
        (0, "sft", 0.2, 10.0), (1, "dpo-1", 0.4, 10.0), (2, "dpo-2", 0.6, 10.0), (3, "dpo-3", 0.8, 10.0),
    ]  # fmt: skip
    assert (loop["done"], loop["of"], loop["stopped"], loop["kept"]) == (3, 3, None, "dpo-3")
    stages = tmp_path / "run" / "stages"
    assert all((stages / name / "adapter").is_dir() for name in ("04-dpo-1", "07-dpo-2", "10-dpo-3"))


@pytest.mark.parametrize("dies_in", ["sft", "prepare-1", "dpo-2", "evaluate-2", "prepare-3"])
def test_killed_anywhere_it_goes_on_where_it_stood(tmp_path: Path, world: World, dies_in: str) -> None:
    world.dies_in = dies_in
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan(tmp_path, **METRIC))
    done = world.ran[:-1]
    world.ran, world.dies_in = [], ""
    run_plan(plan(tmp_path, **METRIC))
    assert world.ran[0] == dies_in and not set(done) & set(world.ran)
    world.ran = []
    run_plan(plan(tmp_path, **METRIC))
    assert world.ran == []


def test_what_changes_makes_only_what_follows_again(tmp_path: Path, world: World) -> None:
    run_plan(plan(tmp_path))
    write_text(tmp_path / "run" / "stages" / "06-prepare-2" / "dpo_training.jsonl", "changed")
    world.ran = []
    run_plan(plan(tmp_path))
    assert world.ran == ["dpo-2"]  # this stand-in trains the same from other pairs, so nothing behind it changed


def test_stops_without_gain(tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.values = [0.2, 0.4, 0.41, 0.8]
    summary = run_plan(plan(tmp_path, {"kind": "merge"}, stop={"no_gain": 1}, **METRIC))
    assert "dpo-2" in world.ran and "prepare-3" not in world.ran
    assert world.started["merge"] == "07-dpo-2"
    statuses = {stage["name"]: stage["status"] for stage in summary["stages"]}
    assert (statuses["evaluate-2"], statuses["dpo-3"], statuses["merge"]) == ("done", "left out", "done")
    why = summary["loops"][0]["stopped"]
    assert why == "held_out/accuracy of dpo-2 is 0.410, and dpo-1 had 0.400 [0.380, 0.420]: no gain beyond the interval"
    assert f"round: stopped after round 2 of 3, {why}" in capsys.readouterr().out
    run_plan(plan(tmp_path, {"kind": "merge"}, stop={"no_gain": 1}, **METRIC))
    stops = [row for row in read_jsonl(tmp_path / "run" / "ledger.jsonl") if row["event"] == "stopped"]
    assert [(row["loop"], row["round"], row["why"]) for row in stops] == [("round", 2, why)]
    assert read_json(tmp_path / "run" / "summary.json")["loops"][0]["stopped"] == why


def test_a_task_of_the_same_name_on_other_data_is_no_start(tmp_path: Path, world: World) -> None:
    world.values = [0.9, 0.4, 0.6, 0.8]
    (loop,) = run_plan(plan(tmp_path, before="others.jsonl", keep="best", **METRIC))["loops"]
    assert [(one["number"], one["value"]) for one in loop["rounds"]] == [(1, 0.4), (2, 0.6), (3, 0.8)]
    (loop,) = run_plan(plan(tmp_path, keep="best", **METRIC), fresh=True)["loops"]
    assert [one["value"] for one in loop["rounds"]] == [0.9, 0.4, 0.6, 0.8]


@pytest.mark.parametrize("stop", [{}, {"no_gain": 1}])
def test_rounds_may_begin_with_what_measures_the_one_before(tmp_path: Path, world: World, stop: Any) -> None:
    world.values = [0.2, 0.4, 0.41, 0.8]
    task = {"type": "exact", "name": "held_out", "data": {"files": ["h.jsonl"]}}
    rounds = {"repeat": 3, "stages": [{"kind": "evaluate", "tasks": [task]}, "dpo"], "keep": "best", "stop": stop}
    (tmp_path / "model").mkdir()
    (tmp_path / "a.jsonl").write_text("{}")
    summary = run_plan(load_plan({
        "run": str(tmp_path / "run"), "model": {"path": str(tmp_path / "model")},
        "data": {"files": [str(tmp_path / "a.jsonl")]}, "stages": ["sft", rounds | METRIC],
    }))  # fmt: skip
    (loop,) = summary["loops"]
    assert [one["value"] for one in loop["rounds"]] == [0.2, 0.4, 0.41, None]
    assert loop["kept"] == "dpo-2" and loop["stopped"] is None  # what would stop it shows when all is done


def test_another_stage_that_measures_a_round_is_not_asked(tmp_path: Path, world: World) -> None:
    """It has a task of the same name on other data, and comes first."""
    other, own = (
        {"kind": "evaluate", "tasks": [{"type": "exact", "name": "held_out", "data": {"files": [file]}}]}
        for file in ("others.jsonl", "h.jsonl")
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "a.jsonl").write_text("{}")
    plan = load_plan({
        "run": str(tmp_path / "run"), "model": {"path": str(tmp_path / "model")},
        "data": {"files": [str(tmp_path / "a.jsonl")]},
        "stages": ["sft", {"repeat": 1, "stages": ["dpo", own], **METRIC}],
    })  # fmt: skip
    run_plan(plan)
    (loop,), stages = plan.loops, [read_status(tmp_path, name) for name in ("01-sft", "02-dpo-1", "03-evaluate-1")]
    false = replace(stages[2], name="before", config={"stage": other}, evaluation=(
        {**stages[2].evaluation[0], "value": 0.99},
    ))  # fmt: skip
    (found,) = judge_rounds(loop, 1, [*stages[:2], false, stages[2]], {}).rounds
    assert found.value == 0.4


def read_status(folder: Path, name: str) -> Status:
    return Status(**read_json(folder / "run" / "stages" / name / "status.json"))


def test_patience_counts_rounds_in_a_row(tmp_path: Path, world: World) -> None:
    world.values = [0.2, 0.4, 0.41, 0.8]
    run_plan(plan(tmp_path, stop={"no_gain": 2}, **METRIC))
    assert "dpo-3" in world.ran


def test_best_round_is_what_later_stages_go_on_from(tmp_path: Path, world: World) -> None:
    world.values = [0.2, 0.7, 0.6, 0.65]
    summary = run_plan(plan(tmp_path, {"kind": "merge", "start": "round"}, keep="best", **METRIC))
    assert summary["loops"][0]["kept"] == "dpo-1" and world.started["merge"] == "04-dpo-1"
    assert world.started["prepare-3"] == "07-dpo-2"  # rounds themselves go on from the last


def test_stops_where_answers_grow_and_keeps_none_that_is_too_long(tmp_path: Path, world: World) -> None:
    world.lengths = [10, 12, 13, 10]
    summary = run_plan(plan(tmp_path, keep="best", stop={"max_length_growth": 1.2}, **METRIC))
    assert "prepare-3" not in world.ran
    assert summary["loops"][0]["stopped"] == "answers of dpo-2 are 1.30 times as long as at first, more than 1.2 times"
    assert summary["loops"][0]["kept"] == "dpo-1"


def test_a_stage_of_a_round_that_was_never_made_is_asked_for_in_vain(tmp_path: Path, world: World) -> None:
    world.values = [0.2, 0.4, 0.41, 0.8]
    for behind in ({"kind": "merge", "start": "dpo-3"}, {"kind": "sft", "data": {"files": ["@prepare-3/x.jsonl"]}}):
        name = "dpo-3" if behind["kind"] == "merge" else "prepare-3"
        with pytest.raises(RunError, match=f"asks for '{name}', a round that was not made: the rounds stopped"):
            run_plan(plan(tmp_path, behind, stop={"no_gain": 1}, **METRIC), fresh=True)


def test_until_ends_inside_a_round(tmp_path: Path, world: World) -> None:
    run_plan(plan(tmp_path, **METRIC), until="dpo-2")
    assert world.ran[-1] == "dpo-2"
    world.ran = []
    run_plan(plan(tmp_path, **METRIC))
    assert world.ran[0] == "evaluate-2"
