from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.launch.exported import overrides
from whet.config.rlhf import Online, Peft, Rlhf, is_rlhf, load_rlhf
from whet.config.verl import Verl, verl_options
from whet.demo.plan import BASE
from whet.errors import UserError
from whet.launch.verl.rlhf import export_rlhf

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


def written(folder: Path, **changed: Any) -> str:
    """The file as its toolkit ships it, numbers of the batch made small."""
    rows = [{"question": f"What is {n}+{n}?"} for n in range(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "held_out.jsonl").write_text(json.dumps({"question": "What is 1+2?"}) + "\n")
    file: dict[str, Any] = {
        "algorithm": "dpo", "model_name_or_path": str(BASE), "ref_model_name_or_path": str(BASE),
        "tokenizer_name_or_path": str(BASE), "reward_model_name_or_path": str(BASE),
        "data": {"train_file": "dpo.jsonl", "eval_file": None, "max_length": 1024}, "beta": 0.1, "loss_type": "sigmoid",
        "peft": {
            "enabled": False, "qlora": False, "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.05,
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        },
        "trace": "swanlab", "training_args": {"per_device_train_batch_size": 1, "fp16": True},
        "ppo": {
            "train_file": str(folder / "prompts.jsonl"), "eval_file": str(folder / "held_out.jsonl"),
            "prompt_key": "question", "max_prompt_length": 128, "max_response_length": 64, "train_batch_size": 16,
            "val_batch_size": 256, "rollout_backend": "vllm", "rollout_n": 4, "rollout_tp": 1,
            "rollout_gpu_memory_utilization": 0.6, "load_format": "hf", "log_prob_micro_batch_size_per_gpu": 4,
            "actor_lr": 1e-6, "ppo_epochs": 1, "ppo_mini_batch_size": 8, "ppo_micro_batch_size_per_gpu": 4,
            "kl_loss_coef": 0.001, "kl_loss_type": "low_var_kl", "use_kl_in_reward": False, "entropy_coeff": 0,
            "kl_coef": 0.001, "target_kl": 0.1, "gradient_checkpointing": True, "use_remove_padding": True,
            "reward_micro_batch_size_per_gpu": 2, "reward_max_length": 2048, "n_gpus_per_node": 1, "nnodes": 1,
            "logger": ["console"], "project_name": "rlhf", "experiment_name": "first", "save_freq": 20, "test_freq": 5,
            "total_epochs": 1, "val_before_train": True, "resume_mode": "auto",
        },
    }  # fmt: skip
    for key, value in changed.items():
        place, _, name = key.rpartition("__")
        section = file[place] if place else file
        if value is None:
            section.pop(name)
        else:
            section[name] = value
    path = folder / "rlhf.yaml"
    path.write_text(yaml.safe_dump(file, sort_keys=False))
    return str(path)


def keys_of(folder: Path, algorithm: str, options: Verl | None = None, **changed: Any) -> dict[str, str]:
    export_rlhf(load_rlhf(written(folder, **changed)), options or Verl(), folder / "out", algorithm=algorithm)
    return overrides(folder / "out")


def test_the_whole_file_is_read(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert is_rlhf(path)
    raw = yaml.safe_load(Path(path).read_text())
    left = {f"ppo.{key}" for key in Online.model_fields} - {f"ppo.{key}" for key in raw["ppo"]}
    left |= set(Rlhf.model_fields) - set(raw) | {f"peft.{key}" for key in set(Peft.model_fields) - set(raw["peft"])}
    assert left == {"ppo.use_kl_loss", "ppo.reward_model_name_or_path", "trust_remote_code"}, "the others are above"
    assert load_rlhf(path).ppo.rollout_n == 4


def test_grpo(tmp_path: Path) -> None:
    found = keys_of(tmp_path, "grpo")
    assert found["algorithm.adv_estimator"] == "'grpo'"
    assert found[f"{ACTOR}.use_kl_loss"] == "true", "GRPO has it unless the file says otherwise"
    assert found[f"{ACTOR}.kl_loss_coef"] == "0.001" and found[f"{ACTOR}.kl_loss_type"] == "'low_var_kl'"
    assert (found["data.train_batch_size"], found[f"{ACTOR}.ppo_mini_batch_size"], found[f"{ROLLOUT}.n"]) == (
        "16", "8", "4",
    )  # fmt: skip
    assert found[f"{ACTOR}.ppo_micro_batch_size_per_gpu"] == "4" and found[f"{ACTOR}.use_dynamic_bsz"] == "false"
    assert found["reward.reward_model.enable"] == "true"
    assert found[f"{ROLLOUT}.load_format"] == "'auto'" and found[f"{ROLLOUT}.gpu_memory_utilization"] == "0.6"
    assert (found["trainer.save_freq"], found["trainer.test_freq"]) == ("20", "5")
    assert found["trainer.experiment_name"] == "'first'" and found["trainer.logger"] == "['console']"
    assert not [key for key in found if "target_kl" in key or "val_batch_size" in key]
    text = (tmp_path / "out" / "README.md").read_text()
    assert "`ppo.val_batch_size` is not written" in text and "`ppo.target_kl` is not written" in text


def test_ppo(tmp_path: Path) -> None:
    found = keys_of(tmp_path, "ppo", ppo__use_kl_in_reward=True, ppo__rollout_n=1)
    assert found["algorithm.adv_estimator"] == "'gae'"
    assert found["critic.model.path"] == f"'{BASE.resolve()}'" and found["critic.optim.lr"] == "1e-05"
    assert found["critic.ppo_micro_batch_size_per_gpu"] == "4"
    assert found[f"{ACTOR}.use_kl_loss"] == "false"
    assert found["algorithm.use_kl_in_reward"] == "true" and found["algorithm.kl_ctrl.kl_coef"] == "0.001"


@pytest.mark.parametrize(
    ("changed", "options", "words"),
    [
        ({"ppo__rollout_tp": 2}, [], r"^ppo\.rollout_tp: tensor_parallel 2 does not divide n_gpus_per_node 1"),
        ({"ppo__logger": ["paper"]}, [], r"^ppo\.logger\.0: must be one of console, file"),
        ({"ppo__rollout_tp": 2}, ["verl.n_gpus_per_node=3"], r"^override: verl\.n_gpus_per_node: .*does not divide"),
    ],
)
def test_what_does_not_go_together_is_named_as_in_the_file(
    changed: dict[str, Any], options: list[str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        keys_of(tmp_path, "grpo", verl_options(options), **changed)


def test_what_the_file_says_of_the_kl_wins(tmp_path: Path) -> None:
    assert keys_of(tmp_path, "grpo", ppo__use_kl_loss=False)[f"{ACTOR}.use_kl_loss"] == "false"


def test_the_reward_model_stands_in_either_place(tmp_path: Path) -> None:
    below = keys_of(tmp_path, "grpo", reward_model_name_or_path=None, ppo__reward_model_name_or_path=str(BASE))
    assert below["reward.reward_model.model_path"] == f"'{BASE.resolve()}'"


def test_an_adapter_and_options_of_the_command_line(tmp_path: Path) -> None:
    peft = {"enabled": True, "lora_r": 4, "lora_alpha": 8}
    found = keys_of(tmp_path, "grpo", verl_options(["verl.n_gpus_per_node=2"]), peft=peft)
    assert found["actor_rollout_ref.model.lora_rank"] == "4"
    assert found["actor_rollout_ref.model.target_modules"] == "['q_proj','k_proj','v_proj','o_proj']"
    assert found[f"{ROLLOUT}.load_format"] == "'safetensors'"
    assert found["trainer.n_gpus_per_node"] == "2"


@pytest.mark.parametrize(
    ("changed", "algorithm", "words"),
    [
        ({"ppo__rollout_backend": "hf"}, "grpo", r"ppo\.rollout_backend: verl 0\.9\.1 has no rollouts by transformers"),
        ({"ppo__rollout_n": 1}, "grpo", r"ppo\.rollout_n: GRPO compares"),
        ({}, None, r"algorithm: verl runs ppo and grpo here.*found dpo"),
        ({"ref_model_name_or_path": "other"}, "grpo", r"ref_model_name_or_path: verl's reference"),
        ({"peft": {"enabled": True, "qlora": True}}, "grpo", r"peft\.qlora"),
        ({"reward_model_name_or_path": None}, "grpo", r"reward_model_name_or_path: is required"),
        ({"ppo__reward_model_name_or_path": "other"}, "grpo", r"keep one of both"),
        ({"ppo__ppo_mini_batch_size": 5}, "grpo", r"ppo\.ppo_mini_batch_size: 16 prompts of a round are not whole"),
        ({"ppo__train_batch_size": 64, "ppo__ppo_mini_batch_size": 64}, "grpo", r"ppo\.train_batch_size: there are 40"),
    ],
)  # fmt: skip
def test_refused(changed: dict[str, Any], algorithm: str | None, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        export_rlhf(load_rlhf(written(tmp_path, **changed)), Verl(), tmp_path / "out", algorithm=algorithm)


def test_an_unknown_key_has_its_line_and_the_nearest(tmp_path: Path) -> None:
    path = written(tmp_path, ppo__rollout_num=4)
    line = 1 + Path(path).read_text().splitlines().index("  rollout_num: 4")
    words = rf"rlhf\.yaml:{line}: ppo\.rollout_num: unknown key; did you mean ppo\.rollout_n"
    with pytest.raises(UserError, match=words):
        load_rlhf(path)
    with pytest.raises(UserError, match=r"rlhf\.yaml:\d+: ppo\.rollout_n: must be at least 1 \(found 0\)"):
        load_rlhf(written(tmp_path, ppo__rollout_n=0))


def test_keys_on_the_command_line(tmp_path: Path) -> None:
    assert load_rlhf(written(tmp_path), ["ppo.rollout_n=8"]).ppo.rollout_n == 8
