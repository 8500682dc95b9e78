"""A plan on a real Ray cluster of two nodes on this machine, beside the same plan without Ray. `make test-ray` runs it.

The plan is the demo's in small: demonstrations, self-judged pairs, DPO, GRPO, evaluation; two ranks, and with Ray two
actors that generate for each.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from whet.config.model import Model
from whet.config.reward import RewardHead
from whet.demo import playground
from whet.demo.plan import BASE, CHECKER, accuracy, demo_plan, judge, prompts, write_inputs
from whet.models.load import load_tokenizer
from whet.models.reward import load_reward_model, save_reward_model
from whet.runs.files import read_json, read_jsonl, write_jsonl, write_text
from whet.runs.layout import RunPaths
from whet.schema.artifacts import ModelRef

pytestmark = pytest.mark.ray
REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0", "RAY_raylet_start_wait_time_s": "300", "RAY_health_check_timeout_ms": "60000",
}  # fmt: skip
RANK, ACTOR = "ray::RayTrainWorker", "ray::Answerer"
"""How the processes of a cluster are called."""
PROMPTS, STEPS = 32, 6
PATIENCE = 1800.0
"""Seconds after which a run that does not end is a failure."""


@dataclass(frozen=True)
class Ran:
    """A run that has ended."""

    folder: Path
    code: int
    said: str

    @property
    def evaluation(self) -> list[dict[str, Any]]:
        evaluation: list[dict[str, Any]] = read_json(self.folder / "summary.json")["evaluation"]
        return evaluation

    def metrics(self, stage: str) -> dict[str, float]:
        stages = read_json(self.folder / "summary.json")["stages"]
        return next(one["metrics"] for one in stages if one["name"] == stage)

    def file(self, name: str) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "stages" / name)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two nodes of two CPUs."""
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name.startswith("RAY_")})
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    cluster.add_node(**node)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan as a file. The judge is taught to say its score alone, which is learnt in few steps."""
    folder = tmp_path_factory.mktemp("inputs")
    examples = [
        {"prompt": row["prompt"], "completion": "SCORE: " + row["completion"].rsplit(" ", 1)[1]}
        for row in playground.judge_examples(384, 0)
    ]
    write_jsonl(folder / "demonstrations.jsonl", playground.demonstrations(192, 0))
    write_jsonl(folder / "judge_examples.jsonl", examples)
    write_jsonl(folder / "prompts.jsonl", playground.prompts("train", PROMPTS, 0))
    write_jsonl(folder / "held_out.jsonl", playground.prompts("heldout", 48, 0))
    write_text(folder / "judge.txt", playground.JUDGE_PROMPT + "\n")
    rollout = {"max_new_tokens": 24, "batch_size": 32, "group_size": 4}
    train = {"batch_size": 8, "learning_rate": 1e-4}
    stages = [
        {
            "kind": "sft", "train": {"batch_size": 16, "learning_rate": 2e-3, "epochs": 1},
            "data": {"files": [str(folder / "demonstrations.jsonl"), str(folder / "judge_examples.jsonl")]},
        },
        {
            "kind": "prepare", "data": prompts(str(folder / "prompts.jsonl")), "rollout": rollout,
            "judge": judge(folder) | {"temperature": 0.7}, "checker": CHECKER,
        },
        {"kind": "dpo", "data": {"files": ["@prepare/dpo_training.jsonl"]}, "train": train | {"epochs": 1}},
        {
            "kind": "grpo", "data": prompts(str(folder / "prompts.jsonl")), "reward": CHECKER, "rollout": rollout,
            "objective": {"type": "grpo", "kl_weight": 0.0}, "train": train | {"max_steps": STEPS, "save_every": 2},
        },
        {
            "kind": "evaluate", "models": ["sft", "dpo", "grpo"],
            "tasks": [accuracy("greedy", folder / "held_out.jsonl", 0.0)],
        },
    ]  # fmt: skip
    model = {"path": str(BASE), "lora": None, "device": "cpu"}
    path = folder / "plan.yaml"
    write_text(path, yaml.safe_dump({"run": "runs/plan", "model": model, "stages": stages}))
    return path


@pytest.fixture(scope="module")
def plain(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("plain") / "run"
    return wait(without_ray(plan, folder), folder)


def without_ray(plan: Path, folder: Path) -> subprocess.Popen[str]:
    """The plan by two ranks that torchrun starts, each generating for itself."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return start([*launcher, "-m", "whet", "run", str(plan), f"run={folder}"], folder)


def on_ray(plan: Path, address: str, folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """The same on the cluster, one actor for each rank."""
    engine = "{type: ray, actors: 1}"
    ranks = ["launch.type=ray", "launch.processes=2", "launch.placement=spread", f"launch.address={address}"]
    engines = [f"prepare.rollout.engine={engine}", f"grpo.rollout.engine={engine}"]
    command = [sys.executable, "-m", "whet", "run", str(plan), f"run={folder}", *ranks, *engines, *overrides]
    return start(command, folder)


def start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            command, cwd=folder.parent, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log, text=True
        )


def wait(process: subprocess.Popen[str], folder: Path) -> Ran:
    try:
        code = process.wait(timeout=PATIENCE)
    finally:
        process.kill()
    return Ran(folder, code, folder.with_suffix(".log").read_text(encoding="utf-8"))


def until(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something is there, as long as the run goes on."""
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before"
        time.sleep(0.1)


def pids(title: str) -> list[int]:
    """Processes whose title begins so."""
    found = psutil.process_iter(["cmdline"])
    return [process.pid for process in found if (process.info["cmdline"] or [""])[0].startswith(title)]


def assert_whole(run: Ran) -> None:
    """Every step once, every answer once, every round's completions once."""
    steps = [row["step"] for row in run.file("04-grpo/metrics.jsonl") if "loss" in row]
    assert steps == list(range(1, STEPS + 1))
    stores = [run.file(f"02-prepare/rank-{rank}/rollouts.jsonl") for rank in range(2)]
    answers = Counter(row["key"] for rows in stores for row in rows)
    assert len(answers) == PROMPTS * 4 and set(answers.values()) == {1}
    rounds = run.file("04-grpo/completions.jsonl")
    assert len(rounds) == STEPS * 8 * 4


def test_the_plan_ends_as_without_ray(plan: Path, plain: Ran, address: str, tmp_path: Path) -> None:
    assert plain.code == 0, plain.said
    ran = wait(on_ray(plan, address, tmp_path / "run"), tmp_path / "run")
    assert ran.code == 0, ran.said
    assert ran.evaluation == plain.evaluation
    assert ran.file("03-dpo/metrics.jsonl")[-1]["loss"] == plain.file("03-dpo/metrics.jsonl")[-1]["loss"]
    assert_whole(ran)
    assert ran.said.count(f"grpo  {STEPS}/{STEPS} 100%") == 1
    assert not pids(RANK) and not pids(ACTOR)


@pytest.mark.slow
def test_the_whole_demo_ends_as_without_ray(address: str, tmp_path: Path) -> None:
    inputs, plan = RunPaths(tmp_path / "demo").inputs, tmp_path / "demo.yaml"
    write_inputs(inputs, 0)
    write_text(plan, yaml.safe_dump(demo_plan(tmp_path / "demo", 0)))
    plain = wait(without_ray(plan, tmp_path / "plain"), tmp_path / "plain")
    assert plain.code == 0, plain.said
    ran = wait(on_ray(plan, address, tmp_path / "run"), tmp_path / "run")
    assert ran.code == 0, ran.said
    assert ran.evaluation == plain.evaluation and len(ran.evaluation) >= 8
    print([(one["stage"], one["task"], one["value"]) for one in ran.evaluation if one["metric"] == "accuracy"])


def test_a_rank_and_an_actor_killed_lose_nothing(plan: Path, plain: Ran, address: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = on_ray(plan, address, folder)
    grpo = folder / "stages" / "04-grpo"
    try:
        until((grpo / "checkpoints" / "step-000002").is_dir, process)
        os.kill(pids(ACTOR)[0], signal.SIGKILL)
        until((grpo / "checkpoints" / "step-000004").is_dir, process)
        os.kill(pids(RANK)[-1], signal.SIGKILL)
    except BaseException:
        process.kill()
        raise
    ran = wait(process, folder)
    assert ran.code == 0, ran.said
    assert "is lost" in ran.said and "all start again, 1 of 3 times" in ran.said, ran.said
    assert "engine: actor 0 is lost" in ran.said and "dpo: done before, inputs unchanged" in ran.said
    assert ran.evaluation == plain.evaluation
    assert_whole(ran)


def test_scores_of_actors_are_those_of_one_model(address: str, tmp_path: Path) -> None:
    """Two actors, of which one is killed: the same lines in the same order."""
    model, rows = tmp_path / "reward", tmp_path / "pairs.jsonl"
    ref = ModelRef(path=str(BASE))
    made = load_reward_model(ref, Model(path=str(BASE), lora=None), RewardHead(), dtype=torch.float32, trainable=True)
    save_reward_model(made, load_tokenizer(str(BASE)), model)
    write_jsonl(rows, [{"prompt": f"Name {n}.", "completion": "pear " * (n % 97 + 1)} for n in range(1_500)])
    command = [sys.executable, "-m", "whet", "score", str(rows), "--model", str(model), "--device", "cpu", "--out"]
    actors = ["--actors", "2", "--address", address]
    here = wait(start([*command, str(tmp_path / "here.jsonl")], tmp_path / "here"), tmp_path / "here")
    assert here.code == 0, here.said
    process = start([*command, str(tmp_path / "there.jsonl"), *actors], tmp_path / "there")
    part = tmp_path / "there.jsonl.part"
    until(lambda: part.exists() and part.stat().st_size > 0, process)
    os.kill(pids("ray::ScoreActor")[0], signal.SIGKILL)
    there = wait(process, tmp_path / "there")
    assert there.code == 0, there.said
    ours, theirs = (read_jsonl(tmp_path / f"{name}.jsonl") for name in ("there", "here"))
    assert [row["line"] for row in ours] == [row["line"] for row in theirs] == list(range(1, 1_501))
    assert [row["scores"][0] for row in ours] == pytest.approx([row["scores"][0] for row in theirs], abs=1e-4)
    crowd = wait(
        start([*command, "more.jsonl", "--actors", "99", "--address", address], tmp_path / "n"), tmp_path / "n"
    )
    assert crowd.code == 2 and "the cluster has no room for so many" in crowd.said, crowd.said


def test_a_mistake_is_one_line_and_exit_code_2(plan: Path, address: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ran = wait(on_ray(plan, address, folder, "sft.data.files=[gone.jsonl]"), folder)
    assert ran.code == 2, ran.said
    assert ran.said.splitlines()[-1].startswith("error: rank 0: gone.jsonl: "), ran.said
    assert ran.said.count("error: ") == 1, ran.said
    assert "Traceback" not in ran.said
