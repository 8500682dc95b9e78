"""Every mistake in a plan is one line: place, key, rule, what was found, what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from whet.config.load import load_plan
from whet.errors import ConfigError

PLAN = """\
model:
  path: m
  lora: {rank: 8}
train:
  epochs: 2
stages:
  - kind: sft
    data: {files: a.json}
  - kind: prepare
    data: {files: p.jsonl}
  - kind: dpo
    data: {files: "@prepare/dpo_training.jsonl"}
  - kind: evaluate
    models: [base, sft, dpo]
    tasks: [{type: exact, data: {files: h.json}}]
"""


def complaint(*overrides: str, change: tuple[str, str] = ("", ""), kind: str | None = None, plan: bool = True) -> str:
    """What is said about PLAN with overrides, or with a piece of its text changed."""
    assert change[0] in PLAN
    Path("plan.yaml").write_text(PLAN.replace(*change, 1) if change[0] else PLAN)
    with pytest.raises(ConfigError) as caught:
        load_plan("plan.yaml" if plan else None, overrides, kind=kind)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_plan_itself_is_sound(in_tmp: Path) -> None:
    Path("plan.yaml").write_text(PLAN)
    assert [stage.name for stage in load_plan("plan.yaml").stages] == ["sft", "prepare", "dpo", "evaluate"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 2", "epochs: 2.5", "plan.yaml:5: train.epochs: must be a whole number (found 2.5)"),
        ("epochs: 2", "epochs: two", "plan.yaml:5: train.epochs: must be a whole number (found 'two')"),
        ("epochs: 2", "epoch: 2", "plan.yaml:5: train.epoch: unknown key; did you mean train.epochs?"),
        ("epochs: 2", "lr: 2", "plan.yaml:5: train.lr: unknown key; did you mean train.learning_rate?"),
        ("train:", "trian:", "plan.yaml:4: trian: unknown key; did you mean train?"),
        ("rank: 8", "rank: -1", "plan.yaml:3: model.lora.rank: must be at least 1 (found -1)"),
        ("lora: {rank: 8}", "lora: 8", "plan.yaml:3: model.lora: must be a section of keys (found 8)"),
        ("  path: m\n", "", "plan.yaml:1: model.path: is required; give a checkpoint directory or hub id"),
        ("kind: sft", "kind: stf", "plan.yaml:7: stages.0.kind: must be one of sft, dpo, "),
        ("kind: sft", "name: sft", "plan.yaml:7: stages.0.kind: is required"),
        ("files: a.json", "format: alpaca", "plan.yaml:8: stages.0.data.files: is required; name the file to read"),
        ("files: a.json", "files: [{path: a, wight: 1}]", "plan.yaml:8: stages.0.data.files.0.wight: unknown key"),
        ("@prepare", "@pepare", "plan.yaml:12: stages.2.data.files: '@pepare/dpo_training.jsonl' asks for a file"),
        ("type: exact", "type: exat", "plan.yaml:15: stages.3.tasks.0.type: must be one of exact, overlap"),
        ("[base, sft, dpo]", "[sfft]", "plan.yaml:14: stages.3.models.0: stage 'evaluate' asks for 'sfft'"),
        ("train:\n  epochs: 2", "judge: {votes: 1}\ncheckr: 1", "checkr: unknown key; did you mean check"),
        ("train:\n  epochs: 2", "dtype: fp32", "plan.yaml:4: dtype: no stage of this plan uses it"),
        ("train:\n  epochs: 2", "objective: {bta: 1, beta: 1}", "objective.bta: unknown key; did you mean"),
        ("train:\n  epochs: 2", "rollout:\n  max_new_tokens: 4\n  min_new_tokens: 6", "plan.yaml:6: rollout.min_new_t"),
        ("kind: dpo\n", "kind: dpo\n    start: sftt\n", "plan.yaml:12: stages.2.start: stage 'dpo' asks for 'sftt'"),
        ("kind: dpo\n", "kind: dpo\n    start: sftt\n", "; did you mean sft?"),
        ("kind: dpo\n", "kind: dpo\n    name: base\n", "plan.yaml:12: stages.2.name: two models or stages are called"),
        ("kind: dpo\n", "kind: dpo\n    name: 0\n", "plan.yaml:12: stages.2.name: must be text (found 0)"),
        ("[base, sft, dpo]", "[]", "plan.yaml:14: stages.3.models: must have at least 1 entry"),
        ("{type: exact, data: {files: h.json}}", "{type: exact, data: {files: h, eval_fraction: 0.1}}", "has no mean"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file(in_tmp: Path, old: str, new: str, message: str) -> None:
    assert message in complaint(change=(old, new))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.lora.rank=-1", "override: model.lora.rank: must be at least 1 (found -1)"),
        ("lora.rank=-1", "override: lora.rank: unknown key; did you mean model.lora.rank?"),
        ("epochs=3", "override: epochs: unknown key; did you mean train.epochs?"),
        ("sfft.train.epochs=3", "override: sfft.train.epochs: unknown key; did you mean sft.train.epochs?"),
        ("stages.sfft.train.epochs=3", "no entry called 'sfft' (found sft, prepare, dpo, evaluate); did you mean"),
        ("stages.9.train.epochs=3", "override: stages.9.train.epochs: no entry 9 (found 4 entries)"),
        ("sft.rollout.seed=3", "has no such key; it belongs to grpo, gspo, online_dpo, ppo, prepare"),
        ("rollout.group_size=0", "override: rollout.group_size: must be at least 1 (found 0)"),
        ("data.eval_fraction=1.5", "override: data.eval_fraction: must be less than 1 (found 1.5)"),
        ("model=x", "override: model: must be a section of keys (found 'x'); give a checkpoint directory"),
        ("model.path.x=1", "override: model.path.x: model.path has no keys (found 'm'); set the whole of it"),
        ("model.lora.targets=5", "override: model.lora.targets: must be all-linear or a list (found 5)"),
        ("train.schedule=cosin", "must be one of cosine, linear, constant (found 'cosin'); did you mean cosine?"),
        ("dpo.objective.label_smoothing=0.5", "label_smoothing: must be less than 0.5 (found 0.5)"),
        ("train.learning_rate=.inf", "override: train.learning_rate: must be a number (found inf)"),
        ("train.micro_batch_tokens=0", "train.micro_batch_tokens: must be at least 1 (found 0)"),
        ("rollout.min_new_tokens=999", "override: rollout.min_new_tokens: min_new_tokens 999 exceeds max_new_tok"),
        ("seed=x", "override: seed: must be a whole number (found 'x')"),
        ("run=", "override: run: must be text (found nothing)"),
        ("prepare.name=base", "two models or stages are called 'base'"),
        ("sft.name=a b", "must be made of letters, digits, - and _ (found 'a b')"),
        ("data.files=[a", "override: data.files: not valid YAML"),
        ("train", "override: not an override (found 'train'); write key=value, e.g. train.epochs=2"),
        ("=3", "not an override"),
        ("seed=-1", "override: seed: must be from 0 to 9223372036854775807 (found -1)"),
        ("train.seed=99999999999999999999999", "override: train.seed: must be at most 9223372036854775807"),
        ("train.learning_rate=true", "override: train.learning_rate: must be a number (found true)"),
        ("train.epochs=true", "override: train.epochs: must be a whole number (found true)"),
        ("train.epochs='2'", "override: train.epochs: must be a whole number (found '2')"),
        ("model.vision.train=off", "override: model.vision.train: must be true or false (found 'off')"),
        ("model.quantization.double=0", "override: model.quantization.double: must be true or false (found 0)"),
        ("train.gradient_checkpointing=1", "override: train.gradient_checkpointing: must be true or false or"),
        ("train.batch_size=99999999999999999999999", "override: train.batch_size: must be at most 2147483648"),
        ("rollout.temperature=1e-39", "override: rollout.temperature: must be 0, or from 0.001 to 100 (found 1e-39)"),
        ("evaluate.tasks.0.temperature=1e30", "temperature: must be 0, or from 0.001 to 100 (found 1e+30)"),
        ("rollout.stop=['']", "override: rollout.stop.0: must not be empty"),
        ("sft.data.files=''", "override: sft.data.files: must not be empty"),
        ("judge.model=''", "override: judge.model: must not be empty"),
        ("sft.name=" + "a" * 300, "override: sft.name: must have at most 100 characters"),
        ('run="a\\0b"', "override: run: must not hold the byte 0"),
        ("launch.watchdog=1e30", "override: launch.watchdog: must be at most 1000000"),
        ("prepare.rollout.engine={type: http, model: m, urls: ['ftp://x']}", "must begin with http:// or https://"),
        ("data.files=[!!int x]", "override: data.files: not valid YAML: no plan has tags, such as !!int"),
        ("data.files=" + "[" * 5000, "override: data.files: nested too deeply"),
        ("stages=sft", "override: stages: must be a list (found 'sft')"),
        ("stages=[]", "stages: the plan has no stages"),
    ],
)  # fmt: skip
def test_a_mistake_in_an_override(in_tmp: Path, override: str, message: str) -> None:
    assert message in complaint(override)


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ("sft", [], "model: is required; give a checkpoint directory or hub id, e.g. model.path="),
        ("sft", ["model.path=m"], "data.files: is required; name the file to read"),
        ("evaluate", ["model.path=m"], "tasks: the stage measures nothing"),
        ("evaluate", ["model.path=m", "tasks.0.type=exact"], "override: tasks.0.data.files: is required"),
        ("dpo", ["model.path=m", "data.files=@prepare/a.jsonl"], "none is called 'prepare'; earlier stages: none"),
        ("sft", ["model.path=m", "data.files=a", "rollout.seed=1"], "a stage of kind sft has no such key"),
        ("sft", ["model.path=m", "data.files=a", "lora.rank=-1"], "override: lora.rank: unknown key; did you mean"),
    ],
)  # fmt: skip
def test_a_mistake_on_a_verb(in_tmp: Path, kind: str, overrides: list[str], message: str) -> None:
    assert message in complaint(*overrides, kind=kind, plan=False)


def test_a_key_of_the_command_line_is_blamed_before_one_of_the_plan(in_tmp: Path) -> None:
    text = complaint("rollout.max_new_tokens=4", change=("train:", "rollout: {min_new_tokens: 6}\ntrain:"))
    assert text == "override: rollout.max_new_tokens: min_new_tokens 6 exceeds max_new_tokens 4"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[stf]", "p.yaml:3: stages.0: must be one of sft, "),
        ("[{}]", "p.yaml:3: stages.0.kind: is required; take one of sft, "),
        ("[7]", "p.yaml:3: stages.0: a stage is a kind or a mapping (found 7)"),
        ("[{repeat: 100000, stages: [dpo]}]", "p.yaml:3: stages.0.repeat: must be at most 1000"),
        ("[{repeat: 2, stages: [dpp]}]", "p.yaml:3: stages.0.stages.0: must be one of "),
    ],
)
def test_a_stage_without_a_kind_is_not_blamed_on_a_section(in_tmp: Path, stages: str, message: str) -> None:
    Path("p.yaml").write_text(f"model: {{path: m}}\ntrain: {{epochs: 2}}\nstages: {stages}\n")
    with pytest.raises(ConfigError) as caught:
        load_plan("p.yaml")
    assert str(caught.value).startswith(message)


def test_a_plan_of_stages_is_not_for_a_verb(in_tmp: Path) -> None:
    assert "runs a single stage, and this plan lists stages; use `whet run PLAN.yaml`" in complaint(kind="sft")
    Path("p.yaml").write_text("kind: dpo\nmodel: {path: m}\n")
    with pytest.raises(ConfigError, match=r"p.yaml:1: kind: this plan is not for `whet sft`"):
        load_plan("p.yaml", kind="sft")


def test_a_mapping_needs_stages_and_a_run() -> None:
    with pytest.raises(ConfigError, match="stages: the plan has no stages"):
        load_plan({"run": "a"})
    with pytest.raises(ConfigError, match="run: is required; name a folder"):
        load_plan({"model": {"path": "m"}, "stages": ["sft"]})
    with pytest.raises(ConfigError, match="train: a key must be text"):
        load_plan({"train": {1: 2}})


def test_a_key_of_the_name_of_its_sections_type() -> None:
    wrong = {"type": "model", "path": "rm", "model": "x"}
    plan = {"run": "r", "model": {"path": "m"}, "data": {"files": ["x"]}, "stages": [{"kind": "ppo", "reward": wrong}]}
    with pytest.raises(ConfigError, match=r"stages.0.reward.model: unknown key"):
        load_plan(plan)
