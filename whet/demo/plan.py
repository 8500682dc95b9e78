"""The embedded main job on the playground: base -> SFT -> self-judged answers -> DPO -> GRPO -> evaluation.

    whet demo --seed 1

writes its data and its plan into the run directory and then does what `whet run` does with any plan.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from whet.config.load import load_plan
from whet.config.plan import Plan
from whet.demo import playground
from whet.runs.files import write_jsonl, write_text
from whet.runs.layout import RunPaths

BASE = files("whet.demo").joinpath("base")
"""The small base checkpoint that ships; how it was made: `python -m whet.demo.pretrain`."""
NUM_DEMONSTRATIONS, NUM_JUDGE_EXAMPLES = 5000, 5000
NUM_PROMPTS, NUM_RL_PROMPTS, NUM_VALIDATION, NUM_HELD_OUT = 800, 3000, 200, 600
TEMPERATURE = 1.0


def make_inputs(folder: Path, write: Callable[[Path], None]) -> None:
    """The demo's inputs, where there are none. The folder appears when it is whole: a demo killed before that begins
    anew."""
    if folder.exists():
        return
    half = folder.with_name(f".{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    write(half)
    half.rename(folder)


def write_inputs(folder: Path, seed: int) -> None:
    """Demonstrations, judge examples and prompts, as the files a user would bring. Splits never share a task."""
    write_jsonl(folder / "demonstrations.jsonl", playground.demonstrations(NUM_DEMONSTRATIONS, seed))
    write_jsonl(folder / "judge_examples.jsonl", playground.judge_examples(NUM_JUDGE_EXAMPLES, seed))
    write_jsonl(folder / "prompts.jsonl", playground.prompts("train", NUM_PROMPTS, seed))
    write_jsonl(folder / "rl_prompts.jsonl", playground.prompts("train", NUM_RL_PROMPTS, seed + 1))
    write_jsonl(folder / "validation.jsonl", playground.prompts("validation", NUM_VALIDATION, seed))
    write_jsonl(folder / "held_out.jsonl", playground.prompts("heldout", NUM_HELD_OUT, seed))
    write_text(folder / "judge.txt", playground.JUDGE_PROMPT + "\n")


CHECKER = {"type": "custom", "path": "whet.demo.playground:check"}
"""The playground's checker, which knows what is right."""


def prompts(file: str) -> dict[str, Any]:
    """The data of prompts in a file."""
    return {"files": [file], "format": "prompt"}


def accuracy(name: str, file: Path, temperature: float, num_samples: int = 1) -> dict[str, Any]:
    """The task of answering the prompts of a file."""
    return {
        "type": "exact", "name": name, "data": prompts(str(file)), "checker": CHECKER, "by": "task",
        "temperature": temperature, "num_samples": num_samples, "max_new_tokens": 40, "batch_size": 256,
    }  # fmt: skip


def judge(folder: Path) -> dict[str, Any]:
    """The model as a judge, asked as it was taught."""
    return {"template": str(folder / "judge.txt"), "votes": 1, "max_new_tokens": 48, "temperature": 0.0}


def sft_stage(folder: Path) -> dict[str, Any]:
    """Answers and judgements from examples of both."""
    return {
        "kind": "sft",
        "data": {
            "files": [str(folder / "demonstrations.jsonl"), str(folder / "judge_examples.jsonl")],
            "eval_fraction": 0.02,
        },
        "train": {"batch_size": 32, "epochs": 1, "learning_rate": 2e-3, "warmup_ratio": 0.05},
    }


def prepare_stage(folder: Path, file: str) -> dict[str, Any]:
    """Self-judged pairs from the prompts of a file."""
    return {
        "kind": "prepare",
        "data": prompts(file),
        "rollout": {
            "group_size": 6, "max_new_tokens": 40, "temperature": TEMPERATURE, "top_p": 1.0, "batch_size": 256,
        },
        "judge": judge(folder),
        "checker": CHECKER,
    }  # fmt: skip


def demo_plan(run: Path, seed: int) -> dict[str, Any]:
    """The demo as a plan, in the words of a plan file."""
    folder = RunPaths(run).inputs
    watch = [accuracy("validation", folder / "validation.jsonl", TEMPERATURE, num_samples=2)]
    dpo = {
        "kind": "dpo",
        "data": {"files": ["@prepare/dpo_training.jsonl"], "eval_fraction": 0.1},
        "objective": {"type": "sigmoid", "beta": 0.1},
        "train": {
            "batch_size": 32, "epochs": 3, "learning_rate": 2e-4, "warmup_ratio": 0.05, "eval_every": 12,
            "best_metric": "watch/validation/accuracy",
        },
        "watch": watch,
    }  # fmt: skip
    grpo = {
        "kind": "grpo",
        "data": prompts(str(folder / "rl_prompts.jsonl")),
        "reward": CHECKER,
        "rollout": {"group_size": 8, "max_new_tokens": 40, "batch_size": 256},
        "objective": {"type": "grpo", "kl_weight": 0.0},
        "train": {
            "batch_size": 32, "max_steps": 90, "learning_rate": 1e-3, "eval_every": 30,
            "best_metric": "watch/validation/accuracy",
        },
        "watch": watch,
    }  # fmt: skip
    evaluate = {
        "kind": "evaluate",
        "models": ["base", "sft", "dpo", "grpo"],
        "tasks": [
            accuracy("sampled", folder / "held_out.jsonl", TEMPERATURE, num_samples=4),
            accuracy("greedy", folder / "held_out.jsonl", 0.0),
        ],
    }
    return {
        "run": str(run),
        "seed": seed,
        "model": {"path": str(BASE), "lora": {"rank": 32, "alpha": 64}},
        "stages": [sft_stage(folder), prepare_stage(folder, str(folder / "prompts.jsonl")), dpo, grpo, evaluate],
    }


def run_demo(run: Path, seed: int, overrides: Sequence[str] = ()) -> None:
    """Write the inputs, run the plan, print the table and write the report."""
    from whet.report.page import write_report
    from whet.stages.pipeline import run_plan

    plan = load_plan(demo_plan(run, seed), overrides)
    make_inputs(RunPaths(Path(plan.run)).inputs, partial(write_inputs, seed=seed))
    summary = run_plan(plan)
    print_table(plan, summary)
    print(f"report: {write_report(Path(plan.run))}")


def print_table(plan: Plan, summary: dict[str, Any]) -> None:
    """Accuracy of each model with its interval, and how far the model's judgement can be trusted."""
    rows = {(m["stage"], m["task"]): m for m in summary["evaluation"] if m["metric"] == "accuracy"}
    models = list(dict.fromkeys(stage for stage, _ in rows))
    num = next(iter(rows.values()))["num"]
    table = Table("model", f"sampled (temperature {TEMPERATURE})", "greedy", title_justify="left",
                  title=f"exact accuracy on {num} held-out prompts, 95 % intervals")  # fmt: skip
    for model in models:
        cells = [rows[model, task] for task in ("sampled", "greedy")]
        table.add_row(model, *(f"{m['value']:.3f}  [{m['low']:.3f}, {m['high']:.3f}]" for m in cells))
    console = Console()
    console.print(table)
    prepare = next(stage["metrics"] for stage in summary["stages"] if stage["kind"] == "prepare")
    console.print(
        f"the model's judgement agrees with the checker at {prepare['agreement']:.3f} (AUC, right against wrong "
        f"answers); {prepare['num_pairs']:.0f} pairs from {prepare['num_candidates']:.0f} answers"
    )
