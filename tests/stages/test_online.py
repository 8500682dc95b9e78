"""Stages grpo, gspo, ppo and online_dpo, as a plan runs them: the real engine, rewards, loop and checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from threading import Event, current_thread
from threading import enumerate as enumerate_threads
from typing import Any

import pytest
from safetensors.torch import load_file

from whet.config.load import load_plan
from whet.errors import ConfigError, DataError
from whet.rewards.custom import FunctionReward
from whet.rollout.native import NativeEngine
from whet.runs.files import read_json, read_jsonl
from whet.schema.rollouts import Completion, Request
from whet.stages.pipeline import run_plan
from whet.train.loop import Loop

QUESTIONS = ("Paris is", "Score is", "12 is", "plum is", "Die is", "apple is", "sun is", "moon is")
REWARD = """
def letters(prompt, completion, **columns):
    return sum(map(str.isalpha, completion)) / max(1, len(completion))

def unsure(prompt, completion, place, **columns):
    if place < 2:
        raise ValueError("nobody knows")
    return float(len(completion))


async def failing(prompt, completion, place, **columns):
    if place % 2:
        raise ValueError("odd place")
    return float(len(completion))
"""


@pytest.fixture
def folder(in_tmp: Path) -> Path:
    rows = [{"prompt": text, "answer": str(i), "place": i} for i, text in enumerate(QUESTIONS)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": text, "chosen": "yes " * 3, "rejected": "no"} for text in QUESTIONS]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    Path("reward.py").write_text(REWARD)
    return in_tmp


def plan(checkpoint: Path, *stages: Mapping[str, Any], **top: Any) -> dict[str, Any]:
    return {
        "run": "run",
        "model": {"path": str(checkpoint), "device": "cpu", "lora": {"rank": 4, "alpha": 8}},
        "data": {"files": ["prompts.jsonl"]},
        "rollout": {"group_size": 4, "max_new_tokens": 8},
        "train": {"batch_size": 4, "learning_rate": 1e-2, "precision": "fp32", "max_steps": 2},
        "reward": {"type": "custom", "path": "reward.py:letters"},
        "stages": list(stages),
    } | top  # fmt: skip


def run(checkpoint: Path, *stages: Mapping[str, Any], **top: Any) -> dict[str, Any]:
    return run_plan(load_plan(plan(checkpoint, *stages, **top)))


def steps(stage: str) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(Path("run/stages") / stage / "metrics.jsonl") if "loss" in row]


@pytest.mark.parametrize(
    "stage",
    [
        {"kind": "grpo", "objective": {"type": "grpo"}},
        {"kind": "grpo", "objective": {"type": "dapo"}},
        {"kind": "grpo", "objective": {"type": "rloo", "kl_weight": 0.1}},
        {"kind": "grpo", "objective": {"type": "reinforce_plus_plus", "entropy_weight": 0.01}},
        {"kind": "grpo", "objective": {"type": "raft"}},
        {"kind": "gspo", "objective": {"minibatches": 2}},
        {"kind": "gspo", "objective": {"type": "gspo_token", "minibatches": 2}},
        {"kind": "ppo", "value": {"layers": 2}},
        {"kind": "ppo", "value": {"type": "model"}, "rollout": {"group_size": 1, "max_new_tokens": 8}},
        {"kind": "online_dpo", "objective": {"type": "ipo"}},
        {"kind": "grpo", "rollout": {"staleness": 1, "group_size": 4, "max_new_tokens": 8}},
    ],
    ids=lambda stage: "-".join([stage["kind"], *(f"{key}" for key in stage if key != "kind")]),
)
def test_every_kind_trains(stage: dict[str, Any], tiny_checkpoint: Path, folder: Path) -> None:
    summary = run(tiny_checkpoint, stage)
    assert summary["stages"][0]["status"] == "done"
    (made,) = Path("run/stages").iterdir()
    adapter = load_file(made / "adapter" / "adapter_model.safetensors")
    assert any(float(tensor.abs().max()) > 0 for name, tensor in adapter.items() if "lora_B" in name), "it moved"
    rows = steps(made.name)
    assert [row["step"] for row in rows] == [1, 2]
    assert 0 <= rows[0]["reward"] <= 1 and rows[0]["completions/mean_length"] <= 8
    assert rows[0]["seconds/generate"] > 0 and rows[0]["step_seconds"] > 0
    completions = read_jsonl(made / "completions.jsonl")
    assert {row["prompt"] for row in completions} <= set(QUESTIONS)
    assert all(0 <= row["reward"] <= 1 and row["num_tokens"] <= 8 for row in completions)


def test_ppo_on_a_reward_model_of_the_plan_whose_score_is_the_value_to_start_from(
    tiny_checkpoint: Path, folder: Path
) -> None:
    """reward -> ppo: the policy goes on from the language model, the reward model is asked by its stage's name."""
    summary = run(
        tiny_checkpoint,
        {"kind": "reward", "data": {"files": ["pairs.jsonl"]}},
        {
            "kind": "ppo", "reward": {"type": "model", "path": "reward"},
            "value": {"type": "model", "model": "reward", "learning_rate": 1e-3},
            "objective": {"kl_weight": 0.1, "epochs": 1, "adaptive_kl": {"target": 1.0}},
        },
        {"kind": "evaluate", "models": ["base", "ppo"], "tasks": [{
            "type": "exact", "data": {"files": ["prompts.jsonl"]}, "checker": {"type": "contains"},
            "max_new_tokens": 4,
        }]},
    )  # fmt: skip
    assert [stage["status"] for stage in summary["stages"]] == ["done"] * 3
    weights = [row["objective/kl_weight"] for row in steps("02-ppo")]
    assert weights[0] < 0.1, "no KL yet: the weight falls towards the target"
    assert Path("run/stages/02-ppo/checkpoints/step-000002/value/adapter_config.json").is_file()


def test_rewards_that_fail_are_masked_and_counted(tiny_checkpoint: Path, folder: Path) -> None:
    run(tiny_checkpoint, {"kind": "grpo", "reward": {"type": "custom", "path": "reward.py:failing"}})
    rows = steps("01-grpo")
    failed = [row["frac_reward_failed"] for row in rows]
    assert sum(failed) == pytest.approx(1.0), "half of all prompts, over the two rounds of the epoch"
    assert sum(row["samples"] for row in rows) == 16, "the other half is trained on"
    errors = {row["error"] for row in read_jsonl(Path("run/stages/01-grpo/completions.jsonl")) if row["reward"] is None}
    assert len(errors) == 1 and "odd place" in errors.pop()


def test_the_gold_check_comes_before_training(tiny_checkpoint: Path, folder: Path) -> None:
    """A reference that its own reward does not accept stops the run, or costs its row where the plan says so."""
    rows = [json.loads(line) for line in Path("prompts.jsonl").read_text().splitlines()]
    rows[2]["answer"] = "not a number"
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {"kind": "grpo", "reward": {"type": "numeric"}}
    with pytest.raises(DataError, match=r"prompts.jsonl:3: reward: gold check: 1 of 8 references") as error:
        run(tiny_checkpoint, stage)
    assert "\n" not in str(error.value)
    assert not Path("run/stages/01-grpo/rounds").exists()
    run(tiny_checkpoint, stage, data={"files": ["prompts.jsonl"], "on_bad_row": "drop"})
    account = read_json(Path("run/stages/01-grpo/data.json"))
    assert account["kept"] == 7 and "its reference does not get full marks" in str(account["dropped"])
    Path("prompts.jsonl").write_text(json.dumps(rows[2]) + "\n")
    with pytest.raises(DataError, match="no prompts left"):
        run(tiny_checkpoint, stage, data={"files": ["prompts.jsonl"], "on_bad_row": "drop"}, run="other")


def test_held_out_prompts_are_measured_by_the_reward_and_name_the_best(tiny_checkpoint: Path, folder: Path) -> None:
    train = {"batch_size": 3, "learning_rate": 1e-2, "precision": "fp32", "max_steps": 4, "eval_every": 2}
    summary = run(
        tiny_checkpoint, {"kind": "grpo"}, train=train, data={"files": ["prompts.jsonl"], "eval_fraction": 0.25}
    )
    evaluations = [row for row in read_jsonl(Path("run/stages/01-grpo/metrics.jsonl")) if "loss" not in row]
    assert [row["step"] for row in evaluations] == [0, 2, 4]
    best = max(evaluations[1:], key=lambda row: row["eval/reward"])
    metrics = summary["stages"][0]["metrics"]
    assert metrics["kept_step"] == best["step"] and metrics["eval/reward"] == best["eval/reward"]
    trained = {row["prompt"] for row in read_jsonl(Path("run/stages/01-grpo/completions.jsonl"))}
    assert len(trained) == 6, "two prompts are held out"


def test_an_evaluation_without_a_reward_names_no_best_and_ends_nothing(tiny_checkpoint: Path, folder: Path) -> None:
    rows = Path("prompts.jsonl").read_text().splitlines(keepends=True)
    Path("held.jsonl").write_text("".join(rows[:2]))
    Path("prompts.jsonl").write_text("".join(rows[2:]))
    summary = run(
        tiny_checkpoint, {"kind": "grpo", "reward": {"type": "custom", "path": "reward.py:unsure"}},
        train={"batch_size": 3, "precision": "fp32", "max_steps": 2, "eval_every": 1, "best_metric": "eval/reward"},
        data={"files": ["prompts.jsonl"], "eval_files": ["held.jsonl"]},
    )  # fmt: skip
    evaluations = [row for row in read_jsonl(Path("run/stages/01-grpo/metrics.jsonl")) if "loss" not in row]
    assert [(row["step"], row["eval/reward"]) for row in evaluations] == [(0, None), (1, None), (2, None)]
    assert summary["stages"][0]["metrics"]["kept_step"] == 2


def test_dropout_between_the_steps_of_a_round_is_warned_of(tiny_checkpoint: Path, folder: Path) -> None:
    model = {"path": str(tiny_checkpoint), "device": "cpu", "lora": {"rank": 4, "dropout": 0.1}}
    with pytest.warns(UserWarning, match=r"dropout \(.*lora_dropout.*\) moves the ratios"):
        run(tiny_checkpoint, {"kind": "gspo", "objective": {"minibatches": 2}}, model=model)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"kind": "grpo", "rollout": {"group_size": 1}}, "stages.0.rollout.group_size: grpo compares the samples"),
        ({"kind": "online_dpo", "rollout": {"group_size": 1}}, "stages.0.rollout.group_size: sigmoid compares"),
        ({"kind": "gspo", "objective": {"minibatches": 5}}, "objective.minibatches: there are more than a round has"),
        ({"kind": "grpo", "rollout": {"temperature": 0}}, "rollout.temperature: must be at least 0.001 (found 0)"),
        ({"kind": "grpo", "rollout": {"staleness": 1, "top_p": 0.9}}, "staleness needs tokens from the whole"),
        ({"kind": "grpo", "rollout": {"staleness": 1, "engine": {"type": "native", "graphs": True}}}, "engine.graphs"),
        (
            {"kind": "grpo", "rollout": {"staleness": 1}, "objective": {"importance_correction": "token_truncate"}},
            "stages.0.objective.importance_correction: compares the engine",
        ),
        ({"kind": "grpo", "reward": {"type": "numerik"}}, "did you mean numeric?"),
        ({"kind": "ppo", "objective": {"adaptive_kl": {"target": 1}, "kl_weight": 0}}, "start above it"),
    ],
)  # fmt: skip
def test_what_cannot_learn_is_refused_before_any_model_loads(
    stage: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        load_plan(plan(tmp_path, stage))
    assert message in str(error.value)


def test_a_stage_without_a_reward_is_told(tmp_path: Path) -> None:
    bare = plan(tmp_path, {"kind": "grpo"})
    del bare["reward"]
    with pytest.raises(ConfigError, match=r"stages.0.reward: is required"):
        load_plan(bare)


def test_the_reward_section_and_the_reward_stage_are_told_apart() -> None:
    both = {"run": "r", "model": {"path": "m"}, "data": {"files": ["x"]}, "stages": ["reward", "ppo"]}
    made = load_plan(both, ["reward.type=model", "reward.path=reward", "reward.train.epochs=3"])
    assert made.stages[0].train.epochs == 3 and made.stages[1].train.epochs == 1  # type: ignore[union-attr]
    assert made.stages[1].reward.type == "model"  # type: ignore[union-attr]


def test_the_thread_that_draws_ahead_ends_with_the_stage(
    tiny_checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the lock is given back: the rewards of a round that nobody waits for are not asked."""
    drawing, scored = Event(), list[int]()
    draw, score = NativeEngine.generate, FunctionReward.score

    def slowly(self: NativeEngine, requests: Iterable[Request]) -> Iterator[Completion]:
        for completion in draw(self, requests):
            if current_thread().name.startswith("rollouts"):
                drawing.set()
                time.sleep(0.02)
            yield completion

    def counted(self: FunctionReward, prompts: Any, completions: Any) -> Any:
        scored.append(len(completions))
        return score(self, prompts, completions)

    def interrupted(self: Loop[Any], step: int) -> None:
        self.feed.micro_batches(step)
        assert drawing.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(NativeEngine, "generate", slowly)
    monkeypatch.setattr(FunctionReward, "score", counted)
    monkeypatch.setattr(Loop, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_checkpoint, {"kind": "grpo", "rollout": {"staleness": 1, "group_size": 4, "max_new_tokens": 8}})
    assert not [thread for thread in enumerate_threads() if thread.name.startswith("rollouts")]
    assert scored == [16], "the round that was trained on"
    (part,) = Path("run/stages/01-grpo/rounds").glob("000001.*")
    assert len(read_jsonl(part)) < 16
