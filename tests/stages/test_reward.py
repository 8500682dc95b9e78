"""The reward stage: it learns, says how well, and what it made scores the same wherever it goes."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from whet.config.load import load_plan
from whet.data.batch import collate_rankings
from whet.data.render import Renderer
from whet.models.load import load_tokenizer
from whet.runs.files import read_json, read_jsonl
from whet.runs.sinks import MetricsFile
from whet.schema.records import Message, Ranking
from whet.stages.pipeline import run_plan

WORDS = ["apple", "pear", "plum", "stone", "river", "cloud", "table", "window", "green", "quick", "letter", "garden"]


def pair(draw: random.Random) -> dict[str, str]:
    """Two answers of one length; one word says which is the better."""
    num = draw.randint(3, 7)
    chosen, rejected = ([draw.choice(WORDS) for _ in range(num)] for _ in range(2))
    chosen[draw.randrange(num)], rejected[draw.randrange(num)] = "gladly", "never"
    prompt = f"Write some words about {draw.choice(WORDS)}."
    return {"prompt": prompt, "chosen": " ".join(chosen), "rejected": " ".join(rejected)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 pairs to train on, 100 held out, and rankings made of the same words."""
    folder, draw = tmp_path_factory.mktemp("pairs"), random.Random(0)
    for name, num in (("train", 300), ("held_out", 100)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(pair(draw)) + "\n" for _ in range(num)))
    pairs = [pair(draw) for _ in range(40)]
    rows = [
        {"prompt": p["prompt"], "responses": [p["rejected"], p["chosen"], draw.choice(WORDS)], "rankings": [3, 1, 2]}
        for p in pairs
    ]
    (folder / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def plan_of(checkpoint: Path, files: Path, run: Path, *stages: Mapping[str, Any], **train: Any) -> dict[str, Any]:
    settings = {"learning_rate": 5e-3, "max_steps": 60, "batch_size": 16, "precision": "fp32", "eval_every": 30}
    data = {"files": [str(files / "train.jsonl")], "eval_files": [str(files / "held_out.jsonl")]}
    reward = {"kind": "reward", "data": data, "train": settings | train}
    model = {"path": str(checkpoint), "device": "cpu", "lora": {"rank": 8, "alpha": 16}}
    return {"run": str(run), "model": model, "stages": [reward, *stages]}


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run: a reward model, merged."""
    run = tmp_path_factory.mktemp("run") / "r"
    merge = {"kind": "merge", "start": "reward", "dtype": "fp32", "tolerance": 1e-4}
    run_plan(load_plan(plan_of(tiny_checkpoint, files, run, merge)))
    return run


def stage(run: Path, number: int) -> dict[str, Any]:
    found: dict[str, Any] = read_json(run / "summary.json")["stages"][number]
    return found


def test_it_learns_what_can_be_told_apart(trained: Path) -> None:
    metrics = stage(trained, 0)["metrics"]
    assert metrics["start/eval/accuracy"] < 0.7
    assert metrics["eval/accuracy"] >= 0.95
    assert metrics["eval/loss"] < metrics["start/eval/loss"]
    (measure,) = read_json(trained / "summary.json")["evaluation"]
    assert measure["value"] == metrics["eval/accuracy"] and measure["num"] == 100


def test_calibration_and_length_are_said_at_each_evaluation(trained: Path) -> None:
    lines = read_jsonl(trained / "stages/01-reward/metrics.jsonl")
    rows, steps = ([row for row in lines if ("eval/loss" in row) is said] for said in (True, False))
    assert [row["step"] for row in rows] == [0, 30, 60]
    for row in rows:
        bins = {name: value for name, value in row.items() if name.endswith("_pairs")}
        assert sum(bins.values()) == 100
        assert abs(row["eval/length_correlation"]) <= 1
    assert len({row["eval/length_accuracy"] for row in rows}) == 1, "the baseline is the data's, not the model's"
    assert rows[-1]["eval/brier"] < 0.1 < rows[0]["eval/brier"]
    for row in rows:
        assert row["eval/min_reward"] <= row["eval/mean_reward"] <= row["eval/max_reward"]
    assert not [row for row in steps if "min_reward" in row], "a step's would be a mean over its micro-batches"
    assert not any("calibration" in name for name in stage(trained, 0)["metrics"]), "the bins stay in metrics.jsonl"


def test_scores_survive_saving_loading_and_merging(trained: Path, files: Path, tmp_path: Path) -> None:
    """Packed rows through the adapter, and transformers' own padded forward pass over the merged checkpoint."""
    from whet.cli import main

    out = tmp_path / "scores.jsonl"
    with pytest.raises(SystemExit) as caught:
        main(["score", str(files / "held_out.jsonl"), "--model", str(trained / "stages/01-reward"), "--out", str(out)])
    assert caught.value.code == 0
    assert stage(trained, 1)["metrics"]["max_score_difference"] <= 1e-4

    folder = trained / "stages/02-merge/model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    texts = [text for row in read_jsonl(files / "held_out.jsonl") for text in texts_of(tokenizer, row)]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    with torch.no_grad():
        expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
    found = torch.tensor([score for row in read_jsonl(out) for score in row["scores"]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    accuracy = float((found[::2] > found[1::2]).float().mean())
    assert accuracy == pytest.approx(stage(trained, 0)["metrics"]["eval/accuracy"])


def texts_of(tokenizer: Any, row: Mapping[str, str]) -> list[str]:
    turns = [[{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[name]}]
             for name in ("chosen", "rejected")]  # fmt: skip
    # The score is read at the token that ends the turn; the template writes a line break behind it.
    return [tokenizer.apply_chat_template(turn, tokenize=False).rstrip("\n") for turn in turns]


def test_what_follows_starts_from_a_language_model(tiny_checkpoint: Path, files: Path, tmp_path: Path) -> None:
    (tmp_path / "sft.json").write_text(json.dumps([{"instruction": "Say pear.", "input": "", "output": "pear"}]))
    sft = {"kind": "sft", "data": {"files": [str(tmp_path / "sft.json")]}, "train": {"max_steps": 1}}
    merge = {"kind": "merge", "start": "reward", "dtype": "fp32"}
    run_plan(load_plan(plan_of(tiny_checkpoint, files, tmp_path / "r", merge, sft, max_steps=1)))
    assert read_json(tmp_path / "r/stages/03-sft/status.json")["model"]["path"] == str(tiny_checkpoint)


def test_another_reward_model_goes_on_from_the_first(tiny_checkpoint: Path, files: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny_checkpoint, files, tmp_path / "r", max_steps=30)
    further = plan["stages"][0] | {"name": "further", "start": "reward"}
    run_plan(load_plan(plan | {"stages": [*plan["stages"], further]}))
    first, second = (stage(tmp_path / "r", number)["metrics"] for number in (0, 1))
    # The kept one is that of the lowest held-out loss, and both numbers are measured on the same rows.
    assert second["start/eval/loss"] == pytest.approx(first["eval/loss"], abs=1e-5)


@pytest.mark.parametrize(
    "head", [{"layers": 2}, {"freeze_backbone": True}, {"layers": 2, "freeze_backbone": True}],
    ids=["two layers", "frozen", "two layers, frozen"],
)  # fmt: skip
def test_heads_learn(tiny_checkpoint: Path, files: Path, tmp_path: Path, head: dict[str, Any]) -> None:
    plan = plan_of(tiny_checkpoint, files, tmp_path / "r", learning_rate=1e-2)
    plan["stages"][0]["head"] = head
    run_plan(load_plan(plan))
    metrics = stage(tmp_path / "r", 0)["metrics"]
    assert metrics["eval/loss"] < metrics["start/eval/loss"]


def test_rankings_are_learnt(tiny_checkpoint: Path, files: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny_checkpoint, files, tmp_path / "r", max_steps=40)
    plan["stages"][0]["data"] = {
        "files": [str(files / "rankings.jsonl")],
        "eval_files": [str(files / "rankings.jsonl")],
    }
    run_plan(load_plan(plan))
    assert stage(tmp_path / "r", 0)["metrics"]["eval/accuracy"] > 0.9
    (last,) = [row for row in read_jsonl(tmp_path / "r/stages/01-reward/metrics.jsonl") if "eval/loss" in row][-1:]
    assert sum(value for name, value in last.items() if name.endswith("_pairs")) == 3 * 40


@pytest.mark.parametrize("lora", [{"rank": 4, "alpha": 8, "dropout": 0.2}, None], ids=["adapter", "whole"])
def test_stopped_and_started_again_it_ends_in_the_same_bytes(
    tiny_checkpoint: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any] | None
) -> None:
    plans = [plan_of(tiny_checkpoint, files, tmp_path / name, max_steps=8, save_every=2) for name in ("a", "b")]
    for plan in plans:
        plan["model"]["lora"] = lora
    run_plan(load_plan(plans[0]))
    write = MetricsFile.write

    def stops(self: MetricsFile, row: Mapping[str, Any]) -> None:
        write(self, row)
        if row["step"] == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MetricsFile, "write", stops)
        run_plan(load_plan(plans[1]))
    run_plan(load_plan(plans[1]))
    name = "adapter/adapter_model.safetensors" if lora else "model/model.safetensors"
    first, second = (tmp_path / run / "stages/01-reward" / name for run in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_ranks_may_be_counted_from_0(tiny_checkpoint: Path) -> None:
    """They are told from a preference's margin, which ends in 0, by beginning at 1."""
    renderer = Renderer(load_tokenizer(str(tiny_checkpoint)))
    prompt = (Message("user", "Name a fruit."),)
    for ranks in ((1.0, 0.0), (2.0, 1.0)):
        row = renderer.group(Ranking(prompt=prompt, responses=("stone", "pear"), ranks=ranks))
        batch = collate_rankings([row], device=torch.device("cpu"))
        assert batch.ranks.tolist() == [2.0, 1.0] and batch.margins.tolist() == [0.0, 0.0]
