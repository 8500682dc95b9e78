"""Weights in parts on two ranks: the steps of one rank with the whole model, and one checkpoint.

Also a run that goes on with another way to hold the weights.

`make test-ranks`. Two real processes on CPUs, gloo between them; all their runs in one go, since most of the time of a
short run is its imports. DeepSpeed's part is left out where it is not installed; it compiles an operator of its own on
its first run on a machine.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from whet.runs.files import read_jsonl

pytestmark = pytest.mark.ranks
REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = ("red", "green", "seven", "apples", "carry", "the", "old", "boat", "over", "cold", "water", "nobody", "minds")
STAGES = ("01-sft", "02-dpo", "03-kto", "04-reward", "05-grpo")
STOP = ["sft", 12]
"""Between the checkpoints of steps 10 and 15."""
FULL = ["model.lora=null", *(f"{stage[3:]}.train.learning_rate=1e-3" for stage in STAGES)]
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed")


@dataclass(frozen=True)
class Case:
    """A run with weights in parts, and how far it goes."""

    holding: str
    weights: str
    until: str

    @property
    def name(self) -> str:
        return f"{self.weights}-{self.holding}"

    @property
    def stages(self) -> tuple[str, ...]:
        return STAGES[: [stage[3:] for stage in STAGES].index(self.until) + 1]


CASES = [
    Case("fsdp", "lora", "grpo"), Case("fsdp", "full", "dpo"), Case("zero2", "lora", "grpo"),
    Case("zero2", "full", "dpo"), Case("zero3", "lora", "sft"), Case("zero3", "full", "dpo"),
]  # fmt: skip
HERE = [case for case in CASES if case.holding == "fsdp" or find_spec("deepspeed")]


def of_cases() -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "case",
        [pytest.param(c, id=c.name, marks=[] if c.holding == "fsdp" else needs_deepspeed) for c in CASES],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """Data of uneven lengths, so that ranks need different numbers of passes, and a plan of twenty steps a stage."""
    made, draw = tmp_path_factory.mktemp("shards"), random.Random(0)

    def text(most: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, most)))

    pairs = [{"prompt": text(12), "chosen": text(20), "rejected": text(9)} for _ in range(45)]
    rows = {
        "told": [{"prompt": pair["prompt"], "response": pair["chosen"]} for pair in pairs],
        "pairs": pairs,
        "rated": [
            {"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"}
            for pair in pairs for name in ("chosen", "rejected")
        ],
        "prompts": [{"prompt": pair["prompt"]} for pair in pairs],
    }  # fmt: skip
    for name, listed in rows.items():
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    train = {
        "batch_size": 8, "learning_rate": 2e-3, "precision": "fp32", "max_steps": 20, "save_every": 5, "eval_every": 10,
        "epsilon": 1e-6,  # else Adam makes a step of full size out of a gradient that is rounding and nothing else
        "micro_batch_tokens": 200, "max_grad_norm": 0.5, "keep": "last",
    }  # fmt: skip
    told, paired, rated, prompts = ({"files": [str(made / f"{name}.jsonl")], "eval_fraction": 0.2} for name in rows)
    plan = {
        "run": str(made / "run"),
        "model": {"path": str(tiny_checkpoint), "device": "cpu", "lora": {"rank": 4, "alpha": 8}},
        "stages": [
            {"kind": kind, "start": start, "data": data, "train": train, **more}
            for kind, start, data, more in (
                ("sft", "base", told, {}), ("dpo", "sft", paired, {}), ("kto", "base", rated, {}),
                ("reward", "base", paired, {}),
                ("grpo", "base", prompts, {
                    "rollout": {"group_size": 3, "max_new_tokens": 8},
                    "reward": {"type": "length", "unit": "characters", "target": 20},
                    "objective": {"type": "dapo", "num_iterations": 2, "minibatches": 2, "kl_weight": 0.05},
                }),
            )
        ],
    }  # fmt: skip
    (made / "plan.yaml").write_text(yaml.safe_dump(plan))
    for stage in (2, 3):
        zero = {"stage": stage, "reduce_bucket_size": "auto", "stage3_param_persistence_threshold": 0}
        settings = {"train_batch_size": "auto", "gradient_clipping": "auto", "zero_optimization": zero}
        (made / f"zero{stage}.json").write_text(json.dumps(settings))
    return made


def words(folder: Path, case: Case, name: str) -> list[str]:
    """Overrides of the plan."""
    said = [f"run={folder / name}", *(FULL if case.weights == "full" else [])]
    if case.holding == "fsdp":
        return [*said, "launch.sharding=fsdp"]
    if case.holding == "whole":
        return said
    return [*said, "launch.sharding.type=deepspeed", f"launch.sharding.config={folder / case.holding}.json"]


def jobs_in_parts(folder: Path) -> list[Any]:
    """Whole runs, runs that are cut off, and runs that go on from what one rank has left. Ranks load in turn for the
    whole ones, where they can, and at once for the others."""
    plan = str(folder / "plan.yaml")
    jobs = []
    for case in HERE:
        cut, going = f"{case.name}-cut", f"{case.name}-going"
        jobs += [
            [plan, words(folder, case, case.name), None, case.until, True],
            [plan, words(folder, case, cut), STOP, "sft"], [plan, words(folder, case, going), None, "sft"],
        ]  # fmt: skip
    return jobs


def runs_here(folder: Path, jobs: list[Any]) -> None:
    spec = spec_from_file_location("shard_runs", Path(__file__).with_name("shard_runs.py"))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    for job in jobs:
        module.run(*job)


@pytest.fixture(scope="module")
def runs(folder: Path) -> Path:
    """The folder with every run: one rank's, those in parts, and those that changed from one to the other."""
    plan = str(folder / "plan.yaml")
    alone = [Case("whole", "lora", "grpo"), Case("whole", "full", "dpo")]
    runs_here(folder, [[plan, words(folder, case, f"{case.weights}-one"), None, case.until] for case in alone])
    whole = {case: Case("whole", case.weights, "sft") for case in HERE}
    runs_here(folder, [[plan, words(folder, whole[c], f"{c.name}-going"), STOP, "sft"] for c in HERE])
    (folder / "jobs.json").write_text(json.dumps(jobs_in_parts(folder)))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        str(Path(__file__).with_name("shard_runs.py")), str(folder / "jobs.json"),
    ]  # fmt: skip
    environment = {
        **os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
        # where DeepSpeed finds ninja
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-6000:]
    runs_here(folder, [[plan, words(folder, whole[c], f"{c.name}-cut"), None, "sft"] for c in HERE])
    return folder


def assert_same_steps(found: Path, expected: Path, stages: tuple[str, ...]) -> None:
    """Every number of every line of metrics.jsonl, but for times and memory."""
    for stage in stages:
        one, two = (read_jsonl(run / "stages" / stage / "metrics.jsonl") for run in (expected, found))
        assert [row["step"] for row in one] == [row["step"] for row in two], stage
        assert sum("loss" in row for row in one) == 20
        for ours, theirs in zip(two, one, strict=True):
            names = [name for name in theirs if is_compared(name, theirs)]
            numbers = [{name: row[name] for name in names} for row in (ours, theirs)]
            assert ours.keys() == theirs.keys()
            assert numbers[0] == pytest.approx(numbers[1], rel=1e-5, abs=1e-5), f"{stage}, step {theirs['step']}"


def is_compared(name: str, row: dict[str, Any]) -> bool:
    """Not times and memory, nor which of two responses is the better one as long as the model is its reference."""
    if name.endswith("rewards/accuracies"):
        return abs(row.get(name.replace("accuracies", "margins"), 1.0)) > 1e-5
    return "seconds" not in name and name != "peak_memory_bytes"


def weights(stage: Path) -> dict[str, torch.Tensor]:
    (file,) = [file for name in ("adapter", "model") for file in (stage / name).glob("*.safetensors")]
    return load_file(file)


@of_cases()
def test_the_steps_are_those_of_one_rank(case: Case, runs: Path) -> None:
    """Loss, gradient norm, metrics and evaluations, step by step."""
    assert_same_steps(runs / case.name, runs / f"{case.weights}-one", case.stages)


@of_cases()
def test_a_run_in_parts_goes_on_whole(case: Case, runs: Path) -> None:
    """Two ranks to step 10, one from there on."""
    assert_same_steps(runs / f"{case.name}-cut", runs / f"{case.weights}-one", STAGES[:1])


@of_cases()
def test_a_whole_run_goes_on_in_parts(case: Case, runs: Path) -> None:
    """One rank to step 10, two from there on."""
    assert_same_steps(runs / f"{case.name}-going", runs / f"{case.weights}-one", STAGES[:1])


@of_cases()
def test_what_is_left_is_one_checkpoint(case: Case, runs: Path) -> None:
    """The same tensors as one rank leaves, and transformers loads what was trained whole."""
    for stage in case.stages:
        one, parts = (weights(runs / name / "stages" / stage) for name in (f"{case.weights}-one", case.name))
        assert one.keys() == parts.keys(), stage
        for name, tensor in one.items():
            assert torch.allclose(parts[name], tensor, atol=2e-5), f"{stage}: {name}"
    left = runs / case.name / "stages/01-sft"
    if case.weights == "full":
        model, report = AutoModelForCausalLM.from_pretrained(left / "model", output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        stored = weights(left)
        assert all(torch.equal(tensor, stored[name]) for name, tensor in model.named_parameters())
