"""Whole plans on a vision-language model: every stage trains and answers, text rows among rows with pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.data.drawn import draw
from whet.config.load import load_plan
from whet.runs.files import read_jsonl
from whet.stages.pipeline import run_plan

REWARD = """
def letters(prompt, completion, **columns):
    return sum(map(str.isalpha, completion)) / max(1, len(completion))
"""


@pytest.fixture
def folder(in_tmp: Path) -> Path:
    """Eight questions: with one picture, with two of other sizes, with none."""
    for number, (width, height) in enumerate([(90, 70), (56, 112), (60, 60)]):
        draw(Path(f"{number}.png"), width, height, seed=40 * number)
    images: list[list[str]] = [["0.png"], ["1.png", "2.png"], [], ["2.png"]] * 2
    asked = ["Paris is", "Score is", "12 is", "plum is", "Die is", "apple is", "sun is", "moon is"]
    questions = [
        {"prompt": "<image>" * len(shown) + text, "images": shown} for shown, text in zip(images, asked, strict=True)
    ]
    pairs = [{**row, "chosen": "yes yes", "rejected": "no"} for row in questions]
    chats = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": "yes yes"},
            ],
            "images": row["images"],
        }
        for row in questions
    ]
    for name, rows in (("prompts", questions), ("pairs", pairs), ("chats", chats)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("reward.py").write_text(REWARD)
    return in_tmp


def run(checkpoint: Path, *stages: dict[str, Any], **model: Any) -> dict[str, Any]:
    plan = {
        "run": "run",
        "model": {"path": str(checkpoint), "device": "cpu", "lora": {"rank": 4, "alpha": 8}} | model,
        "train": {"batch_size": 4, "learning_rate": 1e-2, "precision": "fp32", "max_steps": 2},
        "stages": list(stages),
    }
    return run_plan(load_plan(plan))


def moved(folder: Path) -> dict[str, float]:
    stored = load_file(folder / "adapter_model.safetensors")
    return {name: float(tensor.abs().max()) for name, tensor in stored.items() if "lora_B" in name}


SFT = {"kind": "sft", "data": {"files": ["chats.jsonl"]}}
DPO = {"kind": "dpo", "data": {"files": ["pairs.jsonl"]}}
ONLINE = {
    "data": {"files": ["prompts.jsonl"]}, "rollout": {"group_size": 2, "max_new_tokens": 6},
    "reward": {"type": "custom", "path": "reward.py:letters"},
}  # fmt: skip


def test_offline_stages_and_a_reward_model(tiny_vlm_checkpoint: Path, folder: Path) -> None:
    """The adapter goes on from stage to stage; its reference is the frozen copy of where it began."""
    summary = run(tiny_vlm_checkpoint, SFT, DPO, {**DPO, "kind": "reward"}, {"kind": "merge", "start": "dpo"})
    assert [stage["status"] for stage in summary["stages"]] == ["done"] * 4
    stages = Path("run/stages")
    for name in ("01-sft", "02-dpo", "03-reward"):
        rows = [row for row in read_jsonl(stages / name / "metrics.jsonl") if "loss" in row]
        assert [row["step"] for row in rows] == [1, 2]
        names = moved(stages / name / "adapter")
        assert any(names.values()) and not any("visual" in key for key in names)
        assert (stages / name / "adapter" / "preprocessor_config.json").is_file()
    first, second = (row["loss"] for row in read_jsonl(stages / "02-dpo" / "metrics.jsonl") if "loss" in row)
    assert first == pytest.approx(0.6931, abs=1e-4), "at its first step the policy is its reference"
    assert second < first
    AutoModelForImageTextToText.from_pretrained(stages / "04-merge" / "model")


def test_every_weight_and_the_eyes_train_beside_a_second_model(tiny_vlm_checkpoint: Path, folder: Path) -> None:
    run(tiny_vlm_checkpoint, DPO, lora=None, vision={"train": True})
    before = load_file(tiny_vlm_checkpoint / "model.safetensors")
    after = load_file(Path("run/stages/01-dpo/model/model.safetensors"))
    assert before.keys() == after.keys()
    changed = {name for name, tensor in after.items() if not tensor.equal(before[name].to(tensor.dtype))}
    assert any("visual.blocks" in name for name in changed) and any("visual.merger" in name for name in changed)
    losses = [row["loss"] for row in read_jsonl(Path("run/stages/01-dpo/metrics.jsonl")) if "loss" in row]
    assert losses[0] == pytest.approx(0.6931, abs=1e-4) and losses[1] < losses[0]


@pytest.mark.parametrize(
    "stage",
    [
        {"kind": "grpo", "objective": {"type": "grpo", "kl_weight": 0.1}},
        {"kind": "gspo"},
        {"kind": "ppo", "value": {"layers": 2}},
        {"kind": "ppo", "value": {"type": "model"}},
        {"kind": "online_dpo"},
    ],
    ids=lambda stage: "-".join([stage["kind"], *map(str, stage.get("value", {}).values())]),
)
def test_online_stages(stage: dict[str, Any], tiny_vlm_checkpoint: Path, folder: Path) -> None:
    run(tiny_vlm_checkpoint, {**ONLINE, **stage})
    (made,) = Path("run/stages").iterdir()
    assert any(moved(made / "adapter").values())
    rows = [row for row in read_jsonl(made / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2]
    # The engine's log-probs are the scoring core's but for rounding.
    assert all(row.get("sampling/checked_logp_difference/max", 0.0) < 1e-4 for row in rows)


def test_a_model_of_text_under_the_same_plan(tiny_checkpoint: Path, folder: Path) -> None:
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    text = [{key: value for key, value in row.items() if key != "images"} for row in rows if not row["images"]]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in text))
    run(tiny_checkpoint, DPO, vision={"max_pixels": 50_000})
    assert not list(Path("run").rglob("preprocessor_config.json"))


def test_the_example_of_llama_factory_trains(tiny_vlm_checkpoint: Path, real_data: Path, in_tmp: Path) -> None:
    shutil.copy(real_data / "mllm_demo.json", "mllm_demo.json")
    for number in (1, 2, 3):
        draw(Path(f"mllm_demo_data/{number}.jpg"), 50 * number, 90, seed=number)
    run(tiny_vlm_checkpoint, {"kind": "sft", "data": {"files": ["mllm_demo.json"]}}, vision={"max_pixels": 8_000})
    rows = [row for row in read_jsonl(Path("run/stages/01-sft/metrics.jsonl")) if "loss" in row]
    assert rows[1]["loss"] < rows[0]["loss"]
