from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.launch.exported import REWARDS, exported, plan_of, sums
from whet.config.plan import Plan
from whet.config.verl import verl_options
from whet.demo.plan import BASE
from whet.errors import UserError
from whet.launch.verl.models import exported_stage
from whet.launch.verl.prompt import prompt_of
from whet.launch.verl.rows import row_of
from whet.schema.records import Message, Origin, Part, Prompt

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verl")
    plan = plan_of(
        folder, "grpo", data={"system": "Be brief."}, objective={"type": "grpo", "minibatches": 4},
        train={"batch_size": 16, "epochs": 3, "save_every": 10, "eval_every": 8, "learning_rate": 1e-6},
    )  # fmt: skip
    exported(plan, folder / "out", ["verl.n_gpus_per_node=2", "verl.tensor_parallel=2", "verl.logger=[console]"])
    return folder / "out"


@pytest.fixture(scope="module")
def keys(out: Path) -> dict[str, str]:
    from tests.launch.exported import overrides

    return overrides(out)


def test_rows_are_whole(out: Path) -> None:
    rows = pq.read_table(out / "train.parquet").to_pylist()
    held_out = pq.read_table(out / "val.parquet").to_pylist()
    assert len(rows) + len(held_out) == 120 and len(held_out) > 0
    row = next(row for row in (*rows, *held_out) if row["extra_info"]["line"] == 6)
    assert row["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Tom has 5 apples and gets 5. How many has he?"},
    ]
    assert row["data_source"] == "sums"
    assert row["reward_model"] == {"style": "rule", "ground_truth": "10"}
    prompt = prompt_of(row)
    assert prompt.messages == (Message("user", "Tom has 5 apples and gets 5. How many has he?"),)
    assert prompt.reference == "10"


def test_batches_and_frequencies_are_in_verls_units(keys: dict[str, str]) -> None:
    assert (keys["data.train_batch_size"], keys[f"{ACTOR}.ppo_mini_batch_size"]) == ("16", "4")
    assert keys[f"{ROLLOUT}.n"] == "4"
    assert keys["trainer.total_epochs"] == "3"
    assert keys["trainer.save_freq"] == "3", "10 optimiser steps are 2.5 rounds"
    assert keys["trainer.test_freq"] == "2"
    assert (keys["data.max_prompt_length"], keys["data.max_response_length"]) == ("256", "32")


def test_options_are_written(keys: dict[str, str]) -> None:
    assert keys["trainer.n_gpus_per_node"] == "2" and keys[f"{ROLLOUT}.tensor_model_parallel_size"] == "2"
    assert keys["trainer.logger"] == "['console']"


def test_the_folder_says_what_it_is(out: Path) -> None:
    text = (out / "README.md").read_text()
    assert "run.sh" in text and "no training by verl has been run" in text
    assert (out / "run.sh").stat().st_mode & 0o100
    assert json.loads((out / "reward.json").read_text())["spec"]["reward"]["type"] == "numeric"


def test_an_export_is_replaced_and_nothing_else_is(out: Path, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "grpo")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="something else"):
        exported(plan, tmp_path / "other")
    exported(plan, tmp_path / "new")
    exported(plan, tmp_path / "new")


def test_an_adapter(tmp_path: Path) -> None:
    found = exported(plan_of(tmp_path, "grpo", lora=True), tmp_path / "out")
    assert found["actor_rollout_ref.model.lora_rank"] == "8" and found["actor_rollout_ref.model.lora_alpha"] == "16"
    assert found["actor_rollout_ref.model.target_modules"] == "'all-linear'"
    assert found[f"{ROLLOUT}.load_format"] == "'safetensors'"


def test_a_round_has_the_prompts_of_all_ranks(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "grpo")
    several = plan.model_copy(update={"launch": plan.launch.model_copy(update={"processes": 4})})
    assert exported(several, tmp_path / "out")["data.train_batch_size"] == "16"


def test_steps_are_taken_whatever_the_epochs_say(tmp_path: Path) -> None:
    train = {"batch_size": 16, "epochs": 2, "max_steps": 40}
    found = exported(plan_of(tmp_path, "grpo", objective={"type": "grpo", "minibatches": 2}, train=train),
                     tmp_path / "out")  # fmt: skip
    assert found["trainer.total_training_steps"] == "20"
    assert found["trainer.total_epochs"] == "4", "six or seven whole rounds of some 108 prompts each"


def test_the_critic_has_its_own_learning_rate(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "ppo", value={"learning_rate": 3e-5}, train={"learning_rate": 1e-6})
    found = exported(plan, tmp_path / "out")
    assert (found["critic.optim.lr"], found[f"{ACTOR}.optim.lr"]) == ("3e-05", "1e-06")


@pytest.mark.parametrize("reward", ["rule", "judge"])
def test_engines_of_a_ray_cluster_are_verls_to_start(reward: str, tmp_path: Path) -> None:
    asked = REWARDS[reward] | ({"engine": {"type": "ray"}} if reward == "judge" else {})
    exported(plan_of(tmp_path, "grpo", reward=asked, rollout={"engine": {"type": "ray"}}), tmp_path / "out")
    assert "the keys of `rollout.engine` are not used" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["model", "judge"])
def test_a_model_for_the_reward_is_served_by_verl(kind: str, tmp_path: Path) -> None:
    found = exported(plan_of(tmp_path, "grpo", reward=REWARDS[kind]), tmp_path / "out")
    assert found["reward.reward_model.enable"] == "true"
    assert found["reward.reward_model.model_path"] == f"'{BASE.resolve()}'"
    assert found["reward.reward_model.rollout.response_length"] == ("1" if kind == "model" else "64")


def test_a_judge_at_a_server_of_ones_own(tmp_path: Path) -> None:
    engine = {"type": "http", "urls": ["http://localhost:9/v1"], "model": "big"}
    reward = {**REWARDS["judge"], "engine": engine}
    found = exported(plan_of(tmp_path, "grpo", reward=reward), tmp_path / "out")
    assert found["reward.reward_model.enable"] == "false"


REFUSED: dict[str, tuple[str, dict[str, Any], list[str], str]] = {
    "GPUs": ("grpo", {"train": {"batch_size": 15}}, ["verl.n_gpus_per_node=8"], "8 GPUs cannot share evenly"),
    "minibatches": ("grpo", {"objective": {"type": "grpo", "minibatches": 3}}, [], "not so many equal minibatches"),
    "too few prompts": ("grpo", {"train": {"batch_size": 1000}}, [], "would do no step"),
    "micro-batch": ("grpo", {}, ["verl.micro_batch_per_gpu=5"], "no whole passes"),
    "tokens": ("grpo", {}, ["verl.tokens_per_gpu=100"], "288 tokens"),
    "value": ("ppo", {"value": {"type": "policy", "model": None}}, [], "value.type"),
    "linear": ("grpo", {"train": {"schedule": "linear"}}, [], "train.schedule"),
    "fp32": ("grpo", {"train": {"precision": "fp32"}}, [], "train.precision"),
    "stop": ("grpo", {"rollout": {"stop": ["\n"]}}, [], "rollout.stop"),
    "staleness": ("grpo", {"rollout": {"staleness": 1}}, [], "rollout.staleness"),
    "tokens counted": ("grpo", {"reward": {"type": "length", "target": 9}}, [], "shown text, not tokens"),
    "overlong": ("grpo", {"reward": {"type": "overlong"}}, [], "shown text, not tokens"),
    "another reference": ("grpo", {"reference": {"model": "elsewhere"}}, [], "reference.model"),
    "dynamic sampling": (
        "grpo", {"objective": {"type": "dapo"}, "reward": REWARDS["judge"]}, [], "verl.reward_nnodes=1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    kind, sections, options, words = REFUSED[name]
    if name == "value":
        sections = {}
    reward = sections.get("reward")
    rest = {key: value for key, value in sections.items() if key != "reward"}
    plan = plan_of(tmp_path, kind, reward=reward, **rest)
    if name == "value":
        stage = plan.stages[0].model_copy(update={"value": type(plan.stages[0]).model_fields["value"].default})
        plan = plan.model_copy(update={"stages": (stage,)})
    with pytest.raises(UserError, match=words):
        exported(plan, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_which_stage(tmp_path: Path) -> None:
    file = str(sums(tmp_path / "sums.jsonl"))
    data, reward = {"files": [file]}, {"type": "numeric"}
    stages = [
        {"kind": "sft", "data": {"files": [file], "format": "gsm8k"}},
        {"kind": "grpo", "data": data, "reward": reward},
        {"kind": "gspo", "data": data, "reward": reward},
    ]
    plan = Plan.load({"run": str(tmp_path / "run"), "model": {"path": str(BASE)}, "stages": stages})
    assert exported_stage(plan, "gspo")[0] == 3
    for name, words in ((None, "--stage grpo"), ("sft", "`launch.processes`"), ("gsop", "did you mean gspo")):
        with pytest.raises(UserError, match=words):
            exported_stage(plan, name)
    with pytest.raises(UserError, match=r"--until sft"):
        exported(plan.model_copy(update={"stages": plan.stages[:2]}), tmp_path / "out")


def test_unknown_options_have_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"verl\.n_gpus_node: unknown key; did you mean verl\.n_gpus_per_node"):
        verl_options(["verl.n_gpus_node=8"])
    with pytest.raises(UserError, match=r"verl\.nnodes: must be at least 1 \(found 0\)"):
        verl_options(["verl.nnodes=0"])
    with pytest.raises(UserError, match="does not divide"):
        verl_options(["verl.tensor_parallel=2"])


def test_a_row_with_a_picture(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (3, 2), "red").save(tmp_path / "red.png")
    content = (Part("text", "What is in "), Part("image", str(tmp_path / "red.png")), Part("text", "?"))
    prompt = Prompt(messages=(Message("user", content),), reference="red", origin=Origin(file="a.jsonl", line=1))
    row = row_of(prompt, 0, split="train", system=None)
    assert row["prompt"] == [{"role": "user", "content": "What is in <image>?"}]
    assert row["images"] == [{"bytes": (tmp_path / "red.png").read_bytes()}]
    assert prompt_of(row) == prompt
    literal = Prompt(messages=(Message("user", "write <image>"),), origin=Origin(file="a.jsonl", line=2))
    with pytest.raises(UserError, match=r"a\.jsonl:2: messages: verl takes the text <image>"):
        row_of(literal, 0, split="train", system=None)


def test_a_checkpoint_that_does_not_stop_where_its_template_does(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(BASE, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0]}))
    described = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(described | {"eos_token": described["pad_token"]}))
    plan = plan_of(tmp_path, "grpo")
    plan = plan.model_copy(update={"model": plan.model.model_copy(update={"path": str(folder)})})
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id: .* would go on behind it .*add 2"):
        exported(plan, tmp_path / "out")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    exported(plan, tmp_path / "out")
