"""`repeat`: what a list of rounds becomes, which stage a name in it means, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from whet.config.explain import explain
from whet.config.load import dump_plan, load_plan
from whet.config.plan import Plan
from whet.errors import ConfigError

MORE = {"kind": "dpo", "name": "again"}
HELD_OUT = {"type": "exact", "name": "held_out", "data": {"files": ["h.jsonl"]}}
BODY = [
    "prepare",
    {"kind": "dpo", "data": {"files": ["@prepare/dpo_training.jsonl"]}},
    {"kind": "evaluate", "tasks": [HELD_OUT]},
]


def load(*stages: Any, overrides: tuple[str, ...] = (), **top: Any) -> Plan:
    return load_plan(
        {"run": "r", "model": {"path": "m"}, "data": {"files": ["a.jsonl"]}, "stages": list(stages), **top}, overrides
    )


def rounds(num: int = 2, stages: Any = BODY, **keys: Any) -> dict[str, Any]:
    return {"repeat": num, "stages": stages, **keys}


def test_rounds_become_stages_of_their_own() -> None:
    plan = load("sft", rounds(3), "merge")
    assert [stage.name for stage in plan.stages] == [
        "sft",
        *(f"{name}-{number}" for number in (1, 2, 3) for name in ("prepare", "dpo", "evaluate")),
        "merge",
    ]
    (loop,) = plan.loops
    assert (loop.start, loop.models) == ("sft", ("dpo-1", "dpo-2", "dpo-3"))
    assert loop.rounds[1] == ("prepare-2", "dpo-2", "evaluate-2")


def test_a_resolved_plan_loads_as_itself(tmp_path: Path) -> None:
    plan = load("sft", rounds(2, metric="held_out/accuracy", keep="best", stop={"no_gain": 1}))
    file = tmp_path / "plan.yaml"
    file.write_text(dump_plan(plan))
    assert load_plan(file) == plan


def test_names_mean_the_stage_of_the_same_round() -> None:
    dpo = {"kind": "dpo", "data": {"files": ["@prepare/x.jsonl"]}, "reference": {"model": "judge"}}
    plan = load("sft", rounds(2, [{"kind": "sft", "name": "judge"}, {"kind": "prepare", "start": "judge"}, dpo]))
    first, second = (plan.stages[index] for index in (3, 6))
    assert (first.data.files, first.reference.model) == (("@prepare-1/x.jsonl",), "judge-1")
    assert (second.data.files, second.reference.model) == (("@prepare-2/x.jsonl",), "judge-2")
    assert plan.stages[5].start == "judge-2"


def test_names_from_outside_stay_and_round_start_is_the_model_before() -> None:
    dpo = {"kind": "dpo", "reference": {"model": "sft"}}
    match = {"type": "win_rate", "against": "round_start", "data": {"files": ["h"]}}
    plan = load("sft", rounds(3, [dpo, {"kind": "evaluate", "models": ["dpo"], "tasks": [match]}]))
    assert {stage.reference.model for stage in plan.stages if stage.kind == "dpo"} == {"sft"}
    evaluations = [stage for stage in plan.stages if stage.kind == "evaluate"]
    assert [stage.tasks[0].against for stage in evaluations] == ["sft", "dpo-1", "dpo-2"]
    assert [stage.models for stage in evaluations] == [("dpo-1",), ("dpo-2",), ("dpo-3",)]


def test_a_star_names_the_files_of_all_rounds_so_far() -> None:
    dpo = {"kind": "dpo", "data": {"files": ["@prepare*/x.jsonl", {"path": "@prepare*/y.jsonl", "weight": 2.0}]}}
    plan = load(rounds(2, ["prepare", dpo]))
    assert [getattr(file, "path", file) for file in plan.stages[3].data.files] == [
        "@prepare-1/x.jsonl", "@prepare-2/x.jsonl", "@prepare-1/y.jsonl", "@prepare-2/y.jsonl",
    ]  # fmt: skip


def test_the_own_files_of_earlier_rounds_are_none_in_the_first() -> None:
    prepare = {"kind": "prepare", "data": {"files": ["a.jsonl", "@prepare*/x.jsonl"]}}
    plan = load(rounds(2, [prepare, "dpo"]))
    assert plan.stages[0].data.files == ("a.jsonl",)
    assert plan.stages[2].data.files == ("a.jsonl", "@prepare-1/x.jsonl")


def test_sections_at_the_top_reach_rounds() -> None:
    plan = load("sft", rounds(2), train={"epochs": 4}, seed=7)
    assert {stage.train.epochs for stage in plan.stages if stage.kind in ("sft", "dpo")} == {4}
    assert {stage.rollout.seed for stage in plan.stages if stage.kind == "prepare"} == {7}


@pytest.mark.parametrize("key", ["dpo.train.epochs", "stages.round.stages.dpo.train.epochs"])
def test_overrides_reach_into_rounds(key: str) -> None:
    plan = load("sft", rounds(2), overrides=(f"{key}=5", "round.repeat=3"))
    assert [stage.train.epochs for stage in plan.stages if stage.kind == "dpo"] == [5, 5, 5]


def test_rounds_behind_rounds_start_from_what_those_left() -> None:
    plan = load(rounds(2, ["dpo"]), rounds(1, [MORE], name="more"), {"kind": "evaluate", "tasks": [HELD_OUT]})
    assert [(loop.name, loop.start) for loop in plan.loops] == [("round", "base"), ("more", "round")]


def test_behind_rounds_their_name_is_a_model() -> None:
    plan = load(rounds(2, ["dpo"]), {"kind": "sft", "start": "round"})
    assert plan.stages[-1].start == "round"
    with pytest.raises(ConfigError, match="asks for 'round'"):
        load({"kind": "sft", "start": "round"}, rounds(2, ["dpo"]))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (rounds(2.5), r"stages\.1\.repeat: must be a whole number"),  # type: ignore[arg-type]
        (rounds(0), r"stages\.1\.repeat: must be at least 1"),
        ({"repeat": 2}, r"stages\.1: a repeat has a list of stages"),
        (rounds(2, ["prepare"]), r"stages\.1\.stages: no stage of the rounds trains a model"),
        (rounds(2, [rounds(2)]), "a repeat inside a repeat"),
        (rounds(stop={"no_gain": 1}), r"stages\.1\.stop\.no_gain: stop\.no_gain compares rounds: set `metric`"),
        (rounds(keep="best"), "keep: best compares rounds"),
        (rounds(metric="held_out"), r"stages\.1\.metric: must be TASK/METRIC"),
        (rounds(metric="elsewhere/accuracy"), "no evaluate stage of the rounds has such a task.*held_out"),
        (rounds(stopp={"no_gain": 1}), r"stages\.1\.stopp: unknown key; did you mean stop"),
        (rounds(stages=[{"kind": "dpo", "train": {"epoch": 2}}]), r"stages\.1\.stages\.0\.train\.epoch: unknown key"),
        (rounds(stages=[{"kind": "prepare", "start": "dpo"}, "dpo"]), "'dpo' comes later in its round"),
        ({"kind": ["dpo"]}, r"stages\.1\.kind: must be one of sft, .*\(found a list\)"),
        (rounds(stages=[{"kind": ["dpo"]}, "dpo"]), r"stages\.1\.stages\.0\.kind: must be one of .*\(found a list\)"),
        (rounds(name="sft"), "two models or stages are called 'sft'"),
    ],
)
def test_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("sft", entry)


def test_keys_are_explained() -> None:
    assert "How many rounds" in explain("repeat")
    assert "95 % interval" in " ".join(explain("stop.no_gain").split())
    assert "resolved" not in explain("loops")
