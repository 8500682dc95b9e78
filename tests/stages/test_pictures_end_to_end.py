"""A plan on pictures from beginning to end: the example file of LLaMA-Factory, right answers learnt, a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.drawn import draw
from whet.config.plan import Plan
from whet.report.page import write_report
from whet.runs.files import read_json, read_jsonl
from whet.stages.pipeline import run_plan

REWARD = "def f(prompt, completion, images=(), **columns):\n    return float(len(completion) % 2)\n"


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def test_what_one_stage_writes_another_reads(real_data: Path, in_tmp: Path, tiny_vlm_checkpoint: Path) -> None:
    """Rows of text stand among those with pictures, and the report shows both."""
    Path("mllm_demo.json").write_text((real_data / "mllm_demo.json").read_text())
    for number in (1, 2, 3):
        draw(Path(f"mllm_demo_data/{number}.jpg"), 30 * number, 60, seed=number)
    Path("f.py").write_text(REWARD)
    images = ["mllm_demo_data/1.jpg", "mllm_demo_data/2.jpg"]
    asked = {"problem": "Which fits?", "solution": "Image 1"}
    prompts = write(Path("prompts.jsonl"), [asked | {"images": images}, asked | {"images": images[:1]}, asked])
    text = write(Path("text.jsonl"), [{"prompt": "Say it.", "completion": "So."}])
    rollout = {"group_size": 4, "max_new_tokens": 6, "batch_size": 8}
    data = {"max_length": 256}
    plan = Plan.model_validate({
        "run": "runs/pictures", "model": {"path": str(tiny_vlm_checkpoint), "lora": {"rank": 2}, "device": "cpu"},
        "stages": [
            {
                "kind": "sft", "name": "sft", "data": data | {"files": ["mllm_demo.json", text]},
                "train": {"max_steps": 2},
            },
            {
                "kind": "reject", "name": "reject", "data": data | {"files": prompts}, "rollout": rollout,
                "reward": {"type": "custom", "path": "f.py:f"}, "accept": {"cut": True},
            },
            {
                "kind": "sft", "name": "again", "data": data | {"files": "@reject/accepted.jsonl"},
                "train": {"max_steps": 1},
            },
            {
                "kind": "evaluate", "name": "evaluate",
                "tasks": [{"type": "exact", "data": {"files": prompts}, "max_new_tokens": 4}],
            },
        ],
    })  # fmt: skip
    run_plan(plan)
    stages = sorted(Path("runs/pictures/stages").iterdir())
    assert [read_json(stage / "status.json")["status"] for stage in stages] == ["done"] * 4
    assert read_json(stages[0] / "data.json")["kept"] == 7
    shown = read_jsonl(stages[2] / "pictures.jsonl")
    assert any("[image" in piece["text"] and piece["picture"] for piece in shown[0]["pieces"])
    page = write_report(Path("runs/pictures")).read_text()
    assert page.count('<img src="data:image/jpeg;base64,') >= 10
    assert "tokens 1.jpg]" in page


def test_a_missing_picture_stops_before_a_model_is_loaded(in_tmp: Path, tiny_vlm_checkpoint: Path) -> None:
    from whet.errors import DataError

    row = {"prompt": "Which?", "completion": "This.", "images": ["nowhere.png"]}
    plan = Plan.model_validate({
        "run": "runs/x", "model": {"path": str(tiny_vlm_checkpoint)},
        "stages": [{"kind": "sft", "name": "sft", "data": {"files": write(Path("rows.jsonl"), [row])}}],
    })  # fmt: skip
    with pytest.raises(DataError, match=r"rows\.jsonl:1: images: the picture is missing \(found .*nowhere\.png\)"):
        run_plan(plan)
