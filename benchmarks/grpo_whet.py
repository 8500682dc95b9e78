"""whet's side of `grpo`: an ordinary plan, run as a user runs it, and what it left in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.generate_side import children_bytes
from benchmarks.grpo_job import REWARD, Job, Learned, Step
from whet.config.data import Data
from whet.config.load import load_plan
from whet.config.stage import GrpoStage
from whet.data.pictures import picture_reader
from whet.data.render import Renderer
from whet.data.sources import read_records
from whet.data.tokens import load_tokenizer
from whet.rewards.process import Worker
from whet.runs.files import read_jsonl
from whet.runs.layout import RunPaths
from whet.schema.records import Prompt
from whet.stages.pipeline import run_plan

FUNCTION = f"{REWARD}:share_of_letters"


def train(job: Job) -> Learned:
    """Train once."""
    made = load_plan(plan(job))
    run_plan(made)
    (stage,) = made.stages
    assert isinstance(stage, GrpoStage)
    return Learned(
        steps=steps_of(job), kl_weight=stage.objective.kl_weight, reward_process_bytes=reward_process_bytes()
    )


def plan(job: Job) -> dict[str, Any]:
    """The plan of one training. What is not named here is left at whet's default."""
    learning = job.learning
    return {
        "run": job.folder,
        "model": {
            "path": learning.checkpoint,
            "device": learning.device,
            "lora": {"rank": learning.rank, "alpha": learning.alpha},
        },
        "stages": [
            {
                "kind": "grpo",
                "data": {"files": [learning.data]},
                "reward": {"type": "custom", "path": FUNCTION},
                "rollout": {
                    "group_size": learning.samples,
                    "max_new_tokens": learning.new_tokens,
                    "min_new_tokens": learning.new_tokens,
                    "temperature": 1.0,
                },
                "objective": {"type": "grpo", "kl_weight": learning.kl_weight},
                "train": {
                    "batch_size": learning.prompts,
                    "max_steps": learning.steps,
                    "learning_rate": learning.learning_rate,
                    "precision": "bf16",
                    "seed": learning.seed,
                },
            }
        ],
    }


def steps_of(job: Job) -> list[Step]:
    """What the run logged of its steps, and of the rounds it generated for them."""
    learning = job.learning
    folder = RunPaths(Path(job.folder)).stage(1, "grpo")
    prompts, _ = read_records(Data(files=(learning.data,)), ("prompt",))
    renderer = Renderer(load_tokenizer(learning.checkpoint), reader=picture_reader(learning.checkpoint))
    steps = []
    logged = [row for row in read_jsonl(folder.metrics) if "step_seconds" in row]
    for number, row in enumerate(logged):
        *drawn, _ = read_jsonl(folder.file("rounds") / f"{number:06d}.jsonl")
        asked = [prompts[place] for place in dict.fromkeys(answer["place"] for answer in drawn)]
        steps.append(
            Step(
                seconds=row["step_seconds"],
                generate_seconds=row["seconds/generate"],
                score_seconds=row["seconds/score"],
                reward=row["reward"],
                kl=row["kl"],
                prompt_ids=[list(renderer.prompt(prompt.messages)) for prompt in asked if isinstance(prompt, Prompt)],
                lengths=[len(answer["ids"]) for answer in drawn],
            )
        )
    return steps


def reward_process_bytes() -> int:
    """Memory of a process such as the one that called the function during the run, which has ended."""
    before = children_bytes()
    worker = Worker(FUNCTION, timeout=10.0, what=FUNCTION)
    worker.parameters()  # once it answers, it has imported all it needs
    return children_bytes() - before
