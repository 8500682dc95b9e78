"""Several ranks under real launchers: the steps of one rank, another number of ranks going on, and every way to fail.

`make test-ranks`. Ranks are processes on CPUs that speak gloo.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from whet.config.plan import Plan
from whet.runs.files import read_jsonl
from whet.stages.pipeline import run_plan
from whet.train.loop import Loop

pytestmark = pytest.mark.ranks
REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = (
    "plum", "Paris", "twelve", "apple", "Die", "Score", "one more", "seven", "pear", "quince", "fig", "Rome", "none",
    "b c", "Oslo is", "lemon", "x y z", "a",
)  # fmt: skip
STAGES = ("01-sft", "02-dpo", "03-reward", "04-grpo", "05-online_dpo")
NOT_COMPARED = ("seconds", "peak_memory_bytes")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "whet")
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_processes=2", "--cpu", "-m", "whet")
ITSELF = ("-m", "whet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """Data and a plan of every kind of training, twenty steps each."""
    made = tmp_path_factory.mktemp("ranks")
    both = [(word, other) for word in WORDS for other in WORDS[:4]]
    rows = {
        "told": [{"prompt": f"Say {word}.", "response": f"{word}, {other}!"} for word, other in both],
        "pairs": [{"prompt": f"Say {w}.", "chosen": f"{w} {v}", "rejected": f"no {v} {w}"} for w, v in both],
        "prompts": [{"prompt": f"Say {word}."} for word in WORDS],
    }
    for name, listed in rows.items():
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    train = {
        "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32", "max_steps": 20, "save_every": 5, "eval_every": 10,
        "epsilon": 1e-6,  # else Adam makes a step of full size out of a gradient that is rounding and nothing else
    }  # fmt: skip
    told, pairs, prompts = ({"files": [str(made / f"{name}.jsonl")], "eval_fraction": 0.2} for name in rows)
    online = {
        "start": "base", "data": prompts, "train": train, "rollout": {"group_size": 3, "max_new_tokens": 8},
        "reward": {"type": "length", "unit": "characters", "target": 20},
    }  # fmt: skip
    plan = {
        "run": str(made / "run"),
        "model": {"path": str(tiny_checkpoint), "device": "cpu", "lora": {"rank": 4, "alpha": 8}},
        "stages": [
            {"kind": "sft", "data": told, "train": train},
            {"kind": "dpo", "start": "base", "data": pairs, "train": train},
            {"kind": "reward", "start": "base", "data": pairs, "train": train},
            {
                "kind": "grpo", **online,
                "objective": {"type": "dapo", "num_iterations": 2, "minibatches": 2, "kl_weight": 0.05},
            },
            {"kind": "online_dpo", **online, "train": {**train, "max_steps": 4}},
            {
                "kind": "evaluate", "models": ["sft", "grpo"],
                "tasks": [{"type": "perplexity", "data": {"files": [str(made / "told.jsonl")]}}],
            },
        ],
    }  # fmt: skip
    (made / "plan.yaml").write_text(yaml.safe_dump(plan))
    return made


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """The run of one rank."""
    return run_here(folder, "alone")


def run_here(folder: Path, name: str, *words: str) -> Path:
    """Run the plan in this process."""
    run_plan(Plan.load(folder / "plan.yaml", [f"run={folder / name}", *words]))
    return folder / name


def launch(
    folder: Path, name: str, how: tuple[str, ...], *words: str, doom: str | None = None
) -> subprocess.CompletedProcess[str]:
    """`whet run` on several ranks."""
    paths = [*([str(REPOSITORY / "tests/integration/doomed")] if doom else []), str(REPOSITORY)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    env |= {"WHET_DOOM": doom} if doom else {}
    return subprocess.run(
        [sys.executable, *how, "run", str(folder / "plan.yaml"), f"run={folder / name}", *words],
        env=env, capture_output=True, text=True, timeout=400,
    )  # fmt: skip


def assert_same_steps(found: Path, expected: Path, *, stages: tuple[str, ...] = STAGES, atol: float = 1e-5) -> None:
    """Every number of every line of metrics.jsonl but for times, memory, and means of a micro-batch's extremes."""
    for stage in stages:
        one, two = (read_jsonl(run / "stages" / stage / "metrics.jsonl") for run in (expected, found))
        assert [row["step"] for row in one] == [row["step"] for row in two], stage
        assert sum("loss" in row for row in one) == (4 if stage == "05-online_dpo" else 20)
        for ours, theirs in zip(two, one, strict=True):
            numbers = [
                {key: value for key, value in row.items() if not any(word in key for word in NOT_COMPARED)}
                for row in (ours, theirs)
            ]
            assert numbers[0] == pytest.approx(numbers[1], rel=1e-5, abs=atol), f"{stage}, step {theirs['step']}"


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("error:")]


@pytest.mark.slow
def test_micro_batches_change_nothing(folder: Path, alone: Path) -> None:
    """Accumulation: one record a forward pass."""
    one = [f"{stage}.train.micro_batch_tokens=1" for stage in ("sft", "dpo", "reward", "grpo", "online_dpo")]
    assert_same_steps(run_here(folder, "split", *one), alone)


def test_two_ranks_take_the_steps_of_one(folder: Path, alone: Path) -> None:
    """Loss, gradient norm, metrics and evaluations of SFT, DPO, a reward model, GRPO and online DPO."""
    done = launch(folder, "two", TORCHRUN)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("sft: 72 read") == 1, "one rank speaks"
    assert_same_steps(folder / "two", alone)
    same_files = ("01-sft/data.json", "04-grpo/data.json")
    for name in same_files:
        one, two = ((run / "stages" / name).read_bytes() for run in (alone, folder / "two"))
        assert one == two, name
    said = [
        [(row["key"], row["completion"]) for row in read_jsonl(run / "stages/04-grpo/completions.jsonl")]
        for run in (alone, folder / "two")
    ]
    assert said[0] == said[1]
    one, two = ((run / "stages/04-grpo/rounds").iterdir() for run in (alone, folder / "two"))
    assert sorted(path.name for path in one) == sorted(path.name for path in two), "no part is left over"
    before = (folder / "two/plan.yaml").read_text()
    run_here(folder, "two", "launch.processes=1")
    assert (folder / "two/plan.yaml").read_text() == before, "nothing is made again on one rank"


def test_another_number_of_ranks_goes_on(folder: Path, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 -> 1 within SFT, 1 -> 2 within DPO, 2 -> 1 and 1 -> 2 within GRPO: the steps of the run nobody touched.

    And a rank that is killed is named.
    """
    name = "changing"
    done = launch(folder, name, ITSELF, "launch.processes=2", doom="sft 7 1 kill")
    assert (done.returncode, errors(done)) == (
        2, ["error: rank 1 was ended by SIGKILL; the same command goes on from the last checkpoint"],
    ), done.stderr  # fmt: skip
    with monkeypatch.context() as patch:
        stop_at(patch, "dpo", 7)
        with pytest.raises(KeyboardInterrupt):
            run_here(folder, name)
    done = launch(folder, name, ITSELF, "launch.processes=2", doom="grpo 7 0 kill")
    assert done.returncode == 2 and errors(done)[0].startswith("error: rank 0 was ended by SIGKILL"), done.stderr
    with monkeypatch.context() as patch:
        stop_at(patch, "grpo", 13)
        with pytest.raises(KeyboardInterrupt):
            run_here(folder, name)
    done = launch(folder, name, ITSELF, "launch.processes=2")
    assert done.returncode == 0, done.stderr
    assert_same_steps(folder / name, alone)


def stop_at(patch: pytest.MonkeyPatch, stage: str, step: int) -> None:
    """This process alone gives up there."""
    before = Loop._step

    def step_or_stop(loop: Loop[Any], number: int) -> dict[str, Any]:
        if (loop.title, number) == (stage, step):
            raise KeyboardInterrupt
        return before(loop, number)

    patch.setattr(Loop, "_step", step_or_stop)


@pytest.mark.parametrize("how", [ITSELF, TORCHRUN], ids=["whet", "torchrun"])
def test_a_rank_that_fails_says_why_and_the_others_nothing(how: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    words = () if how is TORCHRUN else ("launch.processes=2",)
    done = launch(folder, tmp_path.name, how, *words, "--until", "sft", doom="sft 3 1 error")
    assert errors(done) == ["error: rank 1: rows.jsonl:7: is broken; mend it"]
    assert done.returncode == (1 if how is TORCHRUN else 2), "torchrun has its own code"
    if how is ITSELF:
        assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) < 6, done.stderr


def test_a_defect_keeps_its_traceback(folder: Path, tmp_path: Path) -> None:
    done = launch(folder, tmp_path.name, ITSELF, "launch.processes=2", "--until", "sft", doom="sft 3 1 defect")
    assert done.returncode == 1 and done.stderr.count("Traceback") == 1
    assert errors(done) == ["error: rank 1: ZeroDivisionError: nobody thought of this"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "doom"), [(ITSELF, "sft 3 1 stop"), (TORCHRUN, "sft 3 1 stop"), (ITSELF, "sft 3 0 hang")],
    ids=["stopped, whet", "stopped, torchrun", "hanging, whet"],
)  # fmt: skip
def test_a_rank_that_hangs_ends_the_run_by_name(how: tuple[str, ...], doom: str, folder: Path, tmp_path: Path) -> None:
    words = () if how is TORCHRUN else ("launch.processes=2",)
    rank, limit = doom.split()[2], 60  # importing and loading are one operation to the watchdog
    done = launch(folder, tmp_path.name, how, *words, f"launch.watchdog={limit}", "--until", "sft", doom=doom)
    (line,) = errors(done)
    assert line.startswith(f"error: rank {rank} has given no sign of life for {limit} s: step 3"), done.stderr
    assert done.returncode != 0
    waiting = "0" if rank == "1" else "1"
    stack = (folder / tmp_path.name / "stacks" / f"rank-{waiting}.txt").read_text()
    assert "all_reduce" in stack or "all_gather" in stack, "what the other waited in"
    again = launch(folder, tmp_path.name, how, *words, "--until", "sft")
    assert again.returncode == 0, again.stderr[-2000:]


def test_accelerate_starts_the_ranks(folder: Path, alone: Path) -> None:
    done = launch(folder, "accelerate", ACCELERATE, "--until", "sft")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_steps(folder / "accelerate", alone, stages=("01-sft",))
