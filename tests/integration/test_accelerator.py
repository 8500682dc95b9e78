"""Training offline and online on a device that is not the CPU, and in another process on the CPU: the same numbers.

`make test-accelerator`. The device is a stand-in: its memory and its kernels are the CPU's, but torch takes it for an
accelerator, so a tensor that is left behind on the CPU is an error there as it is on a GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from whet.runs.files import read_jsonl

pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the device with"),
]
HERE = Path(__file__).parent / "accelerator"
KINDS = ("sft", "dpo", "kto", "reward", "ppo", "grpo", "online_dpo", "evaluate")
WORDS = ("plum", "Paris", "twelve", "apple", "Die", "Score", "seven", "pear")
NOT_COMPARED = ("seconds", "step_seconds", "peak_memory_bytes", "tokens_per_second")  # and what begins with one


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, torch_folder = tmp_path_factory.mktemp("device") / "libdevice.so", Path(torch.__file__).parent
    include = [f"-I{torch_folder / 'include'}", f"-I{torch_folder / 'include/torch/csrc/api/include'}"]
    abi = int(torch.compiled_with_cxx11_abi())
    flags = ["-O1", "-std=c++20", "-fPIC", "-shared", "-w", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]
    libraries = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch_folder / 'lib'}"]
    subprocess.run(["g++", *flags, *include, str(HERE / "device.cpp"), "-o", str(made), *libraries], check=True)
    return made


def plan(folder: Path, checkpoint: Path, device: str, kinds: Collection[str], lora: dict[str, int] | None) -> Path:
    """Stages of these kinds, three steps each."""
    both = [(word, other) for word in WORDS for other in WORDS[:3]]
    rows = {
        "told": [{"prompt": f"Say {word}.", "response": f"{word}, {other}!"} for word, other in both],
        "pairs": [{"prompt": f"Say {w}.", "chosen": f"{w} {v}", "rejected": f"no {v} {w}"} for w, v in both],
        "rated": [{"prompt": f"Say {w}.", "completion": f"{w} {v}", "label": v in WORDS[:2]} for w, v in both],
        "prompts": [{"prompt": f"Say {word}.", "answer": word} for word in WORDS],
    }
    for name, listed in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    train = {
        "batch_size": 4, "learning_rate": 1e-3, "precision": "fp32", "max_steps": 3, "save_every": 2, "eval_every": 2,
        "epsilon": 1e-6,
    }  # fmt: skip
    told, pairs, rated, prompts = ({"files": [str(folder / f"{name}.jsonl")], "eval_fraction": 0.2} for name in rows)
    online: dict[str, Any] = {
        "start": "sft", "data": prompts, "train": train, "rollout": {"group_size": 2, "max_new_tokens": 8},
        "reward": {"type": "length", "unit": "characters", "target": 20},
    }  # fmt: skip
    exact = {"type": "exact", "data": {"files": prompts["files"]}, "max_new_tokens": 8}
    written: dict[str, Any] = {
        "run": str(folder / "run"),
        "model": {"path": str(checkpoint), "device": device, "lora": lora},
        "stages": [
            {"kind": "sft", "data": told, "train": {**train, "gradient_checkpointing": True, "neftune_alpha": 5}},
            {"kind": "dpo", "data": pairs, "reference": {"model": "base"}, "train": train},
            {"kind": "kto", "start": "sft", "data": rated, "train": train},
            {"kind": "reward", "start": "sft", "data": pairs, "train": train},
            {"kind": "ppo", **online, "reward": {"type": "model", "path": "reward"}},
            {"kind": "grpo", **online, "objective": {"kl_weight": 0.1}},
            {"kind": "online_dpo", **online},
            {"kind": "evaluate", "models": ["sft", "grpo"], "tasks": [exact]},
        ],
    }
    written["stages"] = [stage for stage in written["stages"] if stage["kind"] in kinds]
    (folder / "plan.yaml").write_text(yaml.safe_dump(written))
    return folder / "plan.yaml"


def numbers(run: Path) -> dict[str, list[dict[str, Any]]]:
    """What was measured at every step of every stage."""
    files = sorted(run.glob("stages/*/metrics.jsonl"))
    return {
        file.parent.name: [{k: v for k, v in row.items() if not k.startswith(NOT_COMPARED)} for row in read_jsonl(file)]
        for file in files
    }


@pytest.mark.parametrize(("kinds", "lora"), [(KINDS, {"rank": 4, "alpha": 8}), (("sft", "online_dpo"), None)])
def test_stages_compute_there_what_they_compute_on_a_cpu(
    kinds: Collection[str], lora: dict[str, int] | None, library: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    started = {}
    for device in ("npu", "cpu"):
        (tmp_path / device).mkdir()
        file = plan(tmp_path / device, tiny_checkpoint, "auto" if device == "npu" else device, kinds, lora)
        command = [sys.executable, str(HERE / "run.py"), str(library), "run", str(file)]
        one = os.environ | {"OMP_NUM_THREADS": "1"}
        started[device] = subprocess.Popen(
            command, env=one, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    runs = {}
    for device, process in started.items():
        said = process.communicate()[1]
        assert process.returncode == 0, said[-3000:]
        runs[device] = numbers(tmp_path / device / "run")
    assert len(runs["npu"]) == len(set(kinds) - {"evaluate"}) and runs["npu"].keys() == runs["cpu"].keys()
    for stage, there in runs["npu"].items():
        here = runs["cpu"][stage]
        assert [row.keys() for row in there] == [row.keys() for row in here], stage
        for ours, theirs in zip(there, here, strict=True):
            for name, value in ours.items():
                assert value == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), (stage, name)
