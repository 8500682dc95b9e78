"""From a short plan and overrides to the full plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import whet
from whet.config.data import Source
from whet.config.load import dump_plan, load_data, load_plan
from whet.config.plan import Plan
from whet.config.rewards import Custom
from whet.config.stage import DpoStage, EvaluateStage, GrpoStage, PrepareStage, SftStage
from whet.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = sorted((REPOSITORY / "recipes").glob("**/*.yaml"))

PIPELINE: dict[str, Any] = {
    "run": "runs/a",
    "model": {"path": "m"},
    "train": {"epochs": 2},
    "stages": [
        {"kind": "sft", "data": {"files": "a.json"}},
        {"kind": "prepare", "data": {"files": "p.jsonl"}},
        {"kind": "dpo", "data": {"files": "@prepare/dpo_training.jsonl"}, "train": {"epochs": 3}},
        {"kind": "dpo", "data": {"files": "@prepare/dpo_training.jsonl"}, "objective": {"type": "ipo"}},
        {"kind": "evaluate", "tasks": [{"type": "exact", "data": {"files": "h.json"}}]},
    ],
}


def pipeline(*overrides: str, **sections: Any) -> tuple[SftStage, PrepareStage, DpoStage, DpoStage, EvaluateStage]:
    sft, prepare, dpo, ipo, evaluate = load_plan({**PIPELINE, **sections}, overrides).stages
    assert isinstance(sft, SftStage) and isinstance(prepare, PrepareStage) and isinstance(evaluate, EvaluateStage)
    assert isinstance(dpo, DpoStage) and isinstance(ipo, DpoStage)
    return sft, prepare, dpo, ipo, evaluate


def test_a_section_at_the_top_lies_under_every_stage_that_has_it() -> None:
    sft, _, dpo, ipo, _ = pipeline()
    assert (sft.train.epochs, dpo.train.epochs, ipo.train.epochs) == (2, 3, 2)
    assert dpo.train.learning_rate == 5e-6, "a section's own default is not the other kind's"
    sft, prepare, dpo, _, _ = pipeline(data={"max_length": 99})
    assert [stage.data.max_length for stage in (sft, prepare, dpo)] == [99, 99, 99]
    assert sft.data.files == ("a.json",)


def test_an_objective_lies_under_stages_of_its_type_only() -> None:
    sft, _, dpo, ipo, _ = pipeline(objective={"type": "sigmoid", "beta": 0.3})
    assert (sft.objective.type, dpo.objective.type, ipo.objective.type) == ("nll", "sigmoid", "ipo")
    assert dpo.objective.model_dump()["beta"] == 0.3
    _, _, dpo, ipo, _ = pipeline(objective={"tau": 0.4})
    assert ipo.objective.model_dump()["tau"] == 0.4 and dpo.objective.type == "sigmoid"


def test_the_seed_fills_what_is_not_set() -> None:
    sft, prepare, dpo, _, evaluate = pipeline("seed=7", "sft.data.seed=1", "evaluate.tasks.0.seed=2")
    assert (sft.data.seed, sft.train.seed, prepare.data.seed, prepare.rollout.seed, dpo.train.seed) == (1, 7, 7, 7, 7)
    task = evaluate.tasks[0]
    assert task.model_dump()["seed"] == 2 and task.data.seed == 7


def test_stages_are_named_by_kind_with_a_number_where_it_repeats() -> None:
    assert [stage.name for stage in pipeline()] == ["sft", "prepare", "dpo", "dpo-2", "evaluate"]
    assert [stage.name for stage in pipeline("stages.3.name=dpo")] == ["sft", "prepare", "dpo-2", "dpo", "evaluate"]


def test_overrides_reach_entries_by_number_and_by_name() -> None:
    sft, prepare, dpo, ipo, evaluate = pipeline(
        "stages.0.train.epochs=5", "stages.dpo.train.epochs=6", "dpo-2.train.epochs=7", "rollout.group_size=2",
        "evaluate.tasks.exact.num_samples=4", "evaluate.tasks.1={type: perplexity, data: {files: h.json}}",
        "sft.data.files=[a.json]", "sft.data.files.1=b.json", "sft.data.columns.prompt=frage",
    )  # fmt: skip
    assert (sft.train.epochs, dpo.train.epochs, ipo.train.epochs, prepare.rollout.group_size) == (5, 6, 7, 2)
    assert evaluate.tasks[0].model_dump()["num_samples"] == 4 and evaluate.tasks[1].type == "perplexity"
    assert sft.data.files == ("a.json", "b.json") and sft.data.columns == {"prompt": "frage"}


def test_the_last_override_wins_and_a_stage_beats_the_top() -> None:
    lora = load_plan(PIPELINE, ["model.lora=null", "model.lora.rank=3", "model.lora.rank=4"]).model.lora
    assert lora is not None and lora.rank == 4
    sft, _, dpo, _, _ = pipeline("train.epochs=9")
    assert (sft.train.epochs, dpo.train.epochs) == (9, 3)


def test_a_verb_takes_sections_at_the_top_and_names_its_run(in_tmp: Path) -> None:
    plan = load_plan(None, ["model.path=m", "data.files=a.json", "sft.train.epochs=3"], kind="sft")
    (stage,) = plan.stages
    assert isinstance(stage, SftStage) and (plan.run, stage.name, stage.train.epochs) == ("runs/sft", "sft", 3)
    Path("mine.yaml").write_text("model: {path: m}\nname: first\ndata: {files: a.json}\ntrain: {epochs: 4}\n")
    plan = load_plan("mine.yaml", ["first.train.max_steps=2"], kind="sft")
    (stage,) = plan.stages
    assert isinstance(stage, SftStage) and (plan.run, stage.name) == ("runs/mine", "first")
    assert (stage.train.epochs, stage.train.max_steps) == (4, 2)


def test_bare_words_are_stages_and_the_file_names_the_run(in_tmp: Path) -> None:
    Path("p.yaml").write_text("model: {path: m}\ndata: {files: a.json}\nstages: [sft, merge]\n")
    plan = load_plan("p.yaml", ["stages.0.train.epochs=2"])
    assert plan.run == "runs/p" and [stage.kind for stage in plan.stages] == ["sft", "merge"]
    assert whet.Plan.load("p.yaml", ["stages.0.train.epochs=2"]) == plan


def test_the_home_is_where_the_user_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell replaces it inside a plan, and a folder called `~` is made once too often."""
    monkeypatch.setenv("HOME", "/home/li")
    plan = load_plan({
        "run": "~/runs/a", "model": {"path": "~/models/base"},
        "stages": [
            {"kind": "grpo", "data": {"files": ["~/rows.jsonl", {"path": "~/more.jsonl"}]},
             "reward": {"type": "custom", "path": "~/rules.py:score"}},
        ],
    })  # fmt: skip
    assert (plan.run, plan.model.path) == ("/home/li/runs/a", "/home/li/models/base")
    (stage,) = plan.stages
    assert isinstance(stage, GrpoStage)
    first, second = stage.data.files
    assert first == "/home/li/rows.jsonl" and isinstance(second, Source) and second.path == "/home/li/more.jsonl"
    assert isinstance(stage.reward, Custom) and stage.reward.path == "/home/li/rules.py:score"
    assert load_plan({"run": "r", "model": {"path": "a~b"}, "stages": [{"kind": "merge"}]}).model.path == "a~b"


def test_data_keys_of_the_data_commands() -> None:
    data = load_data(["format=alpaca", "data.columns.prompt=q", "seed=3"])
    assert (data.format, data.columns, data.seed) == ("alpaca", {"prompt": "q"}, 3)
    assert load_data([]).format == "auto"
    with pytest.raises(ConfigError, match=r"data.format: must be one of .*; did you mean alpaca\?"):
        load_data(["format=alpca"])


def assert_same_after_dump(plan: Plan, folder: Path) -> None:
    (folder / "dumped.yaml").write_text(dump_plan(plan), encoding="utf-8")
    assert load_plan(folder / "dumped.yaml") == plan


def test_a_dumped_plan_loads_as_the_same_plan(tmp_path: Path) -> None:
    assert_same_after_dump(load_plan(PIPELINE, ["seed=3", "sft.data.system='null: 1e-5'", "run='1e5'"]), tmp_path)


@pytest.mark.parametrize("kind", ["sft", "dpo", "prepare", "merge"])
def test_defaults_survive_a_dump(tmp_path: Path, kind: str) -> None:
    files = [] if kind == "merge" else ["data.files=a.json"]
    assert_same_after_dump(load_plan(None, ["model.path=m", *files], kind=kind), tmp_path)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_survives_a_dump(tmp_path: Path, recipe: Path) -> None:
    assert_same_after_dump(load_plan(recipe), tmp_path)


@pytest.mark.parametrize(("kind", "samples"), [("grpo", 8), ("gspo", 8), ("ppo", 1), ("online_dpo", 2)])
def test_samples_of_a_prompt_whatever_else_of_the_rollout_is_set(kind: str, samples: int) -> None:
    for overrides in ([], ["rollout.max_new_tokens=9"]):
        plan = load_plan(None, ["model.path=m", "data.files=a", "reward.type=exact", *overrides], kind=kind)
        assert plan.stages[0].model_dump()["rollout"]["group_size"] == samples
