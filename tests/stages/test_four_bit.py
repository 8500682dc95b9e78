"""QLoRA from end to end: a base in 4 bits through SFT, DPO, GRPO, evaluation and the merge; and killed on the way."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import TINY_TEXTS
from tests.stages.doomed import run_and_die
from whet.config.load import load_plan
from whet.config.model import Model
from whet.errors import ConfigError
from whet.models.four_bit import trained_on
from whet.models.load import load_model
from whet.models.merge import logprob_difference, probe_logprobs
from whet.models.tiny import build_tiny
from whet.runs.files import read_json, read_jsonl
from whet.schema.artifacts import ModelRef
from whet.stages.pipeline import run_plan

WORDS = ("red", "green", "blue", "cat", "dog", "sun", "moon", "tree")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    return build_tiny(folder, TINY_TEXTS, vocab_size=384, hidden_size=64, seed=0)


@pytest.fixture
def folder(in_tmp: Path) -> Path:
    rows = [{"instruction": f"Say {word}.", "input": "", "output": f"{word} {word}"} for word in WORDS]
    Path("sft.json").write_text(json.dumps(rows))
    pairs = [{"prompt": f"Say {word}.", "chosen": f"{word} {word}", "rejected": "no no"} for word in WORDS]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {word}."}) + "\n" for word in WORDS))
    Path("reward.py").write_text("def letters(prompt, completion):\n    return float(len(completion) % 7)\n")
    return in_tmp


def plan(checkpoint: Path, run: str = "run", *, only: tuple[str, ...] = (), dropout: float = 0.0) -> dict[str, Any]:
    train = {"batch_size": 4, "learning_rate": 1e-2, "precision": "fp32", "max_steps": 6, "save_every": 2}
    data = {"files": ["sft.json"], "eval_fraction": 0.25}
    stages = [
        {"kind": "sft", "data": data, "train": train | {"max_steps": 12}},
        {"kind": "dpo", "data": {"files": ["pairs.jsonl"]}, "train": train},
        {
            "kind": "grpo", "data": {"files": ["prompts.jsonl"]}, "train": train | {"max_steps": 2},
            "rollout": {"group_size": 4, "max_new_tokens": 6},
            "reward": {"type": "custom", "path": "reward.py:letters"},
        },
        {"kind": "evaluate", "tasks": [{"type": "perplexity", "data": {"files": ["sft.json"]}}]},
        {"kind": "merge", "dtype": "fp32", "tolerance": 1e-3},
    ]  # fmt: skip
    return {
        "run": run,
        "model": {
            "path": str(checkpoint), "device": "cpu", "lora": {"rank": 4, "alpha": 8, "dropout": dropout},
            "quantization": {"type": "nf4"},
        },
        "stages": [stage for stage in stages if not only or stage["kind"] in only],
    }  # fmt: skip


def rows(stage: str, key: str) -> list[float]:
    return [row[key] for row in read_jsonl(Path("run/stages") / stage / "metrics.jsonl") if key in row]


def test_the_whole_way(checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_plan(load_plan(plan(checkpoint)))
    losses, margins = rows("01-sft", "loss"), rows("02-dpo", "rewards/margins")
    assert sum(losses[-3:]) / 3 < losses[0] - 0.4
    # The first step compares the policy with itself: the frozen copy of the adapter, on the same 4 bits.
    assert margins[0] == pytest.approx(0, abs=1e-5) and margins[-1] > 0.1
    for stage in ("01-sft", "02-dpo", "03-grpo"):
        adapter = Path("run/stages") / stage / "adapter"
        assert trained_on(str(adapter)) is not None
        tensors = load_file(adapter / "adapter_model.safetensors")
        assert len(tensors) == 28 and all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert "on the dequantised weights log-probs differ" in capsys.readouterr().out
    merged = Path("run/stages/05-merge")
    numbers = read_json(merged / "status.json")["metrics"]
    assert numbers["dequantised/max_logprob_difference"] < 1e-4 < numbers["original/max_logprob_difference"]
    # An ordinary checkpoint, that transformers opens without the package, and that says what the adapter said.
    config = read_json(merged / "model/config.json")
    assert "quantization_config" not in config
    whole = AutoModelForCausalLM.from_pretrained(merged / "model", dtype=torch.float32).eval()
    taught = Model.model_validate({"path": str(checkpoint), "device": "cpu", "quantization": {}})
    ref = ModelRef(path=str(checkpoint), adapter="run/stages/03-grpo/adapter")
    policy = load_model(ref, taught, dtype=torch.float32)
    probes = [[1, 2, 3, 4, 5], [9, 8, 7]]
    assert logprob_difference(probe_logprobs(whole, probes), probe_logprobs(policy, probes)) < 1e-4


def test_merging_onto_the_original_weights_is_a_choice(checkpoint: Path, folder: Path) -> None:
    both = plan(checkpoint, only=("sft", "merge"))
    both["stages"][-1] |= {"onto": "original", "tolerance": 5.0}
    run_plan(load_plan(both))
    numbers = read_json(Path("run/stages/02-merge/status.json"))["metrics"]
    assert numbers["max_logprob_difference"] == pytest.approx(numbers["original/max_logprob_difference"], rel=0.01)


def test_a_killed_training_ends_in_the_same_bytes(checkpoint: Path, folder: Path) -> None:
    for name, deaths in (("whole", ()), ("killed", (4, 3))):
        wanted = plan(checkpoint, name, only=("sft",), dropout=0.1)
        for number in deaths:
            child = multiprocessing.get_context("spawn").Process(
                target=run_and_die, args=(wanted, "line 01-sft", number)
            )
            child.start()
            child.join()
            assert child.exitcode != 0
        run_plan(load_plan(wanted))
    for file in ("adapter/adapter_model.safetensors", "adapter/quantization.json"):
        one, other = (Path(name) / "stages/01-sft" / file for name in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes()


def test_a_server_does_not_follow_weights_in_4_bits(checkpoint: Path, folder: Path) -> None:
    asked = plan(checkpoint, only=("grpo",))
    asked["stages"][0]["rollout"]["engine"] = "vllm"
    with pytest.raises(ConfigError, match=r"rollout.engine.*vllm with model.quantization.*take native"):
        run_plan(load_plan(asked))


def test_weights_in_parts_are_refused(checkpoint: Path, folder: Path) -> None:
    asked = plan(checkpoint, only=("sft",)) | {"launch": {"processes": 2, "sharding": "fsdp"}}
    with pytest.raises(ConfigError, match=r"quantization holds whole weights .*launch\.sharding fsdp parts them"):
        load_plan(asked)
