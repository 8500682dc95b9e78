"""A stage on fixed data around its loop: devices, memory that runs out, the reference's model, NEFTune, lengths."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from whet.cli import main
from whet.config.load import load_plan
from whet.errors import ModelError, RunError
from whet.models.reference import SecondModel
from whet.runs.files import read_json, read_jsonl
from whet.stages import offline
from whet.stages.pipeline import run_plan
from whet.train.loop import Loop

PAIRS = [
    {"prompt": f"How much is {n} plus 30?", "chosen": f"{n} plus 30 is {n + 30}.", "rejected": "Paris."}
    for n in range(6)
]
ANSWERS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]


def file_of(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def plan_of(checkpoint: Path, kind: str, run: Path, *, lora: bool = True, **stage: Any) -> dict[str, Any]:
    rows = file_of(run.parent, f"{kind}.jsonl", ANSWERS if kind == "sft" else PAIRS)
    train = {"max_steps": 4, "batch_size": 3, "learning_rate": 1e-3, "precision": "fp32", "eval_every": 4}
    model: dict[str, Any] = {"path": str(checkpoint), "device": "cpu"}
    model["lora"] = {"rank": 4, "alpha": 8, "dropout": 0.0} if lora else None
    settings = {"kind": kind, "data": {"files": [rows], "eval_files": [rows]}, **stage}
    settings["train"] = train | stage.get("train", {})
    return {"run": str(run), "model": model, "stages": [settings]}


def lines_of(run: Path) -> list[dict[str, Any]]:
    (folder,) = (run / "stages").iterdir()
    return read_jsonl(folder / "metrics.jsonl")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which stages read their rows."""
    names, read_rows = list[str](), offline.read_rows

    def noted(stage: Any, *given: Any) -> Any:
        names.append(stage.kind)
        return read_rows(stage, *given)

    monkeypatch.setattr(offline, "read_rows", noted)
    return names


@pytest.mark.parametrize(
    ("kind", "field"), [("sft", "model.device"), ("reward", "model.device"), ("dpo", "reference.device")]
)
def test_a_device_that_is_not_there_is_said_before_anything_is_read(
    kind: str, field: str, tiny_checkpoint: Path, tmp_path: Path, no_gpu: None, read: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plan = plan_of(tiny_checkpoint, kind, tmp_path / "r", lora=False)
    if kind == "dpo":
        plan["stages"][0]["reference"] = {"device": "cuda"}
    else:
        plan["model"]["device"] = "cuda"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(SystemExit) as caught:
        main(["run", str(tmp_path / "plan.json")])
    err = capsys.readouterr().err
    assert caught.value.code == 2 and "Traceback" not in err and read == []
    assert f"error: {field}: torch finds no such device on this machine (found 'cuda'); use auto or cpu" in err


def test_the_device_of_a_second_model_that_is_not_needed_is_not_asked_for(
    tiny_checkpoint: Path, tmp_path: Path, no_gpu: None
) -> None:
    """Under an adapter the reference is the base, and SimPO has none; a named model is one of its own."""
    reference = {"reference": {"device": "cuda"}}
    run_plan(load_plan(plan_of(tiny_checkpoint, "dpo", tmp_path / "a", **reference)))
    simpo = {"objective": {"type": "simpo"}, **reference}
    run_plan(load_plan(plan_of(tiny_checkpoint, "dpo", tmp_path / "b", lora=False, **simpo)))
    reference["reference"]["model"] = "base"
    with pytest.raises(ModelError, match=r"^reference\.device: torch finds no such device"):
        run_plan(load_plan(plan_of(tiny_checkpoint, "dpo", tmp_path / "c", **reference)))


@pytest.mark.parametrize(("kind", "asked"), [("sft", None), ("dpo", 64)])
def test_memory_that_runs_out_is_one_line(
    kind: str, asked: int | None, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, step: int) -> Any:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 22.05 GiB.\nSee more"
        )

    monkeypatch.setattr(Loop, "_step", full)
    plan = plan_of(tiny_checkpoint, kind, tmp_path / "r", train={"micro_batch_tokens": asked})
    with pytest.raises(RunError) as caught:
        run_plan(load_plan(plan))
    found, beside = ("null: fitted to the device", "") if asked is None else (
        "64", ", or reference.device=cpu where there is a second model"
    )  # fmt: skip
    assert str(caught.value) == (
        "train.micro_batch_tokens: memory ran out: CUDA out of memory. Tried to allocate 2.00 GiB "
        f"(found {found}); set a lower one, or train.gradient_checkpointing=true{beside}; the last checkpoint is intact"
    )


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_the_second_model_goes_once_every_row_is_measured(
    kind: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps an epoch. KTO has a column for its mismatched rows as well; held-out rows are measured at the start."""
    held, made = list[int](), list[weakref.ref[torch.nn.Module]]()
    step, call = Loop._step, SecondModel.__call__

    def counted(self: Any, number: int) -> Any:
        line = step(self, number)
        held.append(sum(one() is not None for one in made))
        return line

    def noted(self: SecondModel, packed: Any) -> torch.Tensor:
        given = call(self, packed)
        scorer = self._placed.here()
        if not made or made[-1]() is not scorer:
            made.append(weakref.ref(scorer))
        return given

    monkeypatch.setattr(Loop, "_step", counted)
    monkeypatch.setattr(SecondModel, "__call__", noted)
    plan = plan_of(tiny_checkpoint, kind, tmp_path / "r", lora=False)
    if kind == "kto":
        rated = [row | {"label": n % 2 == 0} for n, row in enumerate(ANSWERS)]
        rows = [file_of(tmp_path, "rated.jsonl", rated)]
        plan["stages"][0]["data"] = {"files": rows, "eval_files": rows}
    run_plan(load_plan(plan))
    assert held == [1, 0, 0, 0] and len(made) == 1


def test_neftune_reaches_the_training_and_leaves_the_evaluation_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lines = {}
    for alpha in (0.0, 5.0):
        plan = plan_of(tiny_checkpoint, "sft", tmp_path / f"r{alpha:g}", train={"neftune_alpha": alpha})
        run_plan(load_plan(plan))
        lines[alpha] = lines_of(tmp_path / f"r{alpha:g}")
    (start, first), (noisy_start, noisy_first) = (lines[alpha][:2] for alpha in (0.0, 5.0))
    assert (start["step"], first["step"]) == (0, 1)
    assert noisy_start["eval/loss"] == start["eval/loss"]
    assert abs(noisy_first["loss"] - first["loss"]) > 1e-3


def test_kto_stays_within_max_length(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """GPT-2 has no position behind its last one. Long questions with short answers, and the other way round."""
    torch.manual_seed(0)
    folder = tmp_path / "gpt2"
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(folder)
    sizes = {"vocab_size": 384, "n_positions": 96, "n_embd": 32, "n_layer": 1, "n_head": 2, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder)
    long, short = "zwölf " * 6, "ab"
    rated = [
        {"prompt": prompt, "completion": answer, "label": n % 3 == 0}
        for n, (prompt, answer) in enumerate([(long, short), (short, long)] * 4)
    ]
    plan = plan_of(folder, "kto", tmp_path / "r", lora=False)
    rows = [file_of(tmp_path, "rated.jsonl", rated)]
    plan["stages"][0]["data"] = {"files": rows, "max_length": 96, "on_overlong": "error"}
    run_plan(load_plan(plan))
    (stage,) = (tmp_path / "r" / "stages").iterdir()
    assert read_json(stage / "data.json")["kept"] == 8
    assert not np.isnan(np.fromfile(stage / "reference.f32", dtype=np.float32)).any()


def edited(checkpoint: Path, folder: Path, **tokens: Any) -> Path:
    """A copy of the checkpoint with other words of its tokenizer."""
    shutil.copytree(checkpoint, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, value in tokens.items():
        tokenizer.add_tokens(value) if name == "added" else setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lora", [False, True])
def test_what_is_published_stops_where_the_template_ends_a_turn(
    lora: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A base model's tokenizer and settings know the end of a text alone, as Qwen's do."""
    base = edited(tiny_checkpoint, tmp_path / "base", eos_token="<|endoftext|>")
    end, old = AutoTokenizer.from_pretrained(base).convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    settings = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": old}))
    plan = plan_of(base, "sft", tmp_path / "run", lora=lora)
    run_plan(load_plan(plan | {"stages": [*plan["stages"], *([{"kind": "merge"}] if lora else [])]}))
    model = max((tmp_path / "run" / "stages").iterdir()) / "model"
    assert read_json(model / "generation_config.json")["eos_token_id"] == [end, old]


def test_a_token_that_the_model_does_not_know_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = edited(tiny_checkpoint, tmp_path / "base", added=["<thought>"])
    plan = plan_of(base, "sft", tmp_path / "run")
    plan["model"]["lora"]["targets"] = ["embed_tokens", "q_proj"]  # which stand around what is asked
    run_plan(load_plan(plan))  # added, and in no row
    rows = file_of(tmp_path, "new.jsonl", [{"prompt": "How?", "completion": "<thought>So."}])
    plan["stages"][0]["data"] = {"files": [rows]}
    with pytest.raises(ModelError, match=r"no embedding for \(found '<thought>', \d+ of \d+\)"):
        run_plan(load_plan(plan | {"run": str(tmp_path / "other")}))
