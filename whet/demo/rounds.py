"""Self-rewarding over several rounds on the playground: base -> SFT -> (new prompts -> practice in judging ->
self-judged answers -> DPO -> evaluation) again and again.

    whet demo --rounds 3 --seed 1

Every round has prompts that no round had before, answers them with the model that the round before left, and that model
judges the answers. DPO trains on answers alone, and a judge that is never asked to judge forgets how it is done: within
three rounds half of its reviews can lose their last line. So each round begins with a little practice, on examples of
its own. How well a model judges is measured on stored answers, the same in all rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from whet.config.load import load_plan
from whet.config.plan import Plan
from whet.demo import playground
from whet.demo.plan import (
    BASE,
    CHECKER,
    NUM_DEMONSTRATIONS,
    NUM_HELD_OUT,
    NUM_JUDGE_EXAMPLES,
    TEMPERATURE,
    accuracy,
    judge,
    make_inputs,
    prepare_stage,
    prompts,
    sft_stage,
)
from whet.runs.files import write_jsonl, write_text
from whet.runs.layout import RunPaths

PROMPTS_A_ROUND, PRACTICE_A_ROUND, NUM_JUDGED = 400, 1000, 800
SPARE = 1.25
"""Prompts in the pool for each one wanted."""
SAMPLES = 4
"""Answers to each held-out prompt."""


def write_inputs(folder: Path, seed: int, rounds: int) -> None:
    """Demonstrations, examples of judging, a pool of prompts, and what is measured on: held-out prompts and answers."""
    write_jsonl(folder / "demonstrations.jsonl", playground.demonstrations(NUM_DEMONSTRATIONS, seed))
    write_jsonl(folder / "judge_examples.jsonl", playground.judge_examples(NUM_JUDGE_EXAMPLES, seed))
    for number in range(1, rounds + 1):
        practice = playground.judge_examples(PRACTICE_A_ROUND, seed + 1000 * number)
        write_jsonl(folder / f"practice_{number}.jsonl", practice)
    pool = playground.prompts("train", round(SPARE * PROMPTS_A_ROUND * rounds), seed)
    held_out = playground.prompts("heldout", NUM_HELD_OUT, seed)
    write_jsonl(folder / "pool.jsonl", pool)
    write_jsonl(folder / "held_out.jsonl", held_out)
    write_jsonl(folder / "judged.jsonl", playground.judged_answers(NUM_JUDGED, seed))
    write_text(folder / "judge.txt", playground.JUDGE_PROMPT + "\n")


def rounds_plan(run: Path, seed: int, rounds: int) -> dict[str, Any]:
    """The demo as a plan, in the words of a plan file."""
    folder = RunPaths(run).inputs
    sampled = accuracy("sampled", folder / "held_out.jsonl", TEMPERATURE, num_samples=SAMPLES)
    match = {
        "type": "win_rate", "name": "match", "data": prompts(str(folder / "held_out.jsonl")), "checker": CHECKER,
        "against": "round_start", "temperature": TEMPERATURE, "max_new_tokens": 40, "batch_size": 256,
    }  # fmt: skip
    judging = {
        "type": "judgement", "name": "judging", "data": {"files": [str(folder / "judged.jsonl")]},
        "judge": judge(folder), "batch_size": 256,
    }  # fmt: skip
    practice = {
        "kind": "sft",
        "name": "practice",
        "data": {"files": [str(folder / "practice_{round}.jsonl")]},
        "train": {"batch_size": 32, "epochs": 1, "learning_rate": 5e-4, "warmup_ratio": 0.05},
    }
    dpo = {
        "kind": "dpo",
        "data": {"files": ["@prepare/dpo_training.jsonl"]},
        "objective": {"type": "sigmoid", "beta": 0.1},
        "train": {"batch_size": 32, "epochs": 2, "learning_rate": 2e-4, "warmup_ratio": 0.05},
    }
    round_of = {
        "repeat": rounds,
        "metric": "sampled/accuracy",
        "stop": {"no_gain": 1, "max_length_growth": 1.2},
        "keep": "best",
        "stages": [
            {"kind": "prompts", "data": prompts(str(folder / "pool.jsonl")), "num": PROMPTS_A_ROUND},
            practice,
            prepare_stage(folder, "@prompts/prompts.jsonl"),
            dpo,
            {"kind": "evaluate", "models": ["dpo"], "tasks": [sampled, judging, match]},
        ],
    }
    return {
        "run": str(run),
        "seed": seed,
        "model": {"path": str(BASE), "lora": {"rank": 32, "alpha": 64}},
        "stages": [
            sft_stage(folder),
            {"kind": "evaluate", "name": "before", "models": ["sft"], "tasks": [sampled, judging]},
            round_of,
        ],
    }


def run_rounds(run: Path, seed: int, rounds: int, overrides: Sequence[str] = ()) -> None:
    """Write the inputs, run the plan, print the table and write the report."""
    from whet.report.page import write_report
    from whet.stages.pipeline import run_plan

    plan = load_plan(rounds_plan(run, seed, rounds), overrides)
    make_inputs(RunPaths(Path(plan.run)).inputs, partial(write_inputs, seed=seed, rounds=rounds))
    print_rounds(plan, run_plan(plan))
    print(f"report: {write_report(Path(plan.run))}")


def print_rounds(plan: Plan, summary: dict[str, Any]) -> None:
    """What each round's model can do: answers right, how well it judges, and how long its answers are."""
    values = {(m["stage"], m["task"], m["metric"]): m for m in summary["evaluation"]}
    (loop,) = summary["loops"]
    table = Table("model", f"right at temperature {TEMPERATURE}", "judging (AUC)", "wins over the one before", "tokens",
                  title=f"{NUM_HELD_OUT} held-out prompts, 95 % intervals", title_justify="left")  # fmt: skip
    for one in loop["rounds"]:
        keys = (("sampled", "accuracy"), ("judging", "agreement"), ("match", "win_rate"))
        cells = [values.get((one["model"], *key)) for key in keys]
        shown = (f"{m['value']:.3f}  [{m['low']:.3f}, {m['high']:.3f}]" if m else "" for m in cells)
        table.add_row(f"M{one['number']} {one['model']}", *shown, f"{one['mean_length']:.2f}")
    console = Console()
    console.print(table)
    if loop["stopped"]:
        console.print(f"stopped after {loop['done']} of {loop['of']} rounds: {loop['stopped']}")
